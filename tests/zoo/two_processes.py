"""What one of two processes does in a test. Imports little, because each process starts anew."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from method_zoo.parts.tokenizers.vq import Codebook


def trained(piece: slice) -> Codebook:
    """A codebook after two steps on this piece of 60 vectors."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(60, 6, generator=generator)
    scores = torch.rand(60, generator=generator)
    torch.manual_seed(0)
    codebook = Codebook(32, 6)
    for _ in range(2):
        codebook(vectors[piece], scores[piece])
        codebook.update()
    return codebook


def meet(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)


def share_codebook(rank: int, folder: str) -> None:
    meet(rank, folder)
    # unequal shares, one of them with fewer vectors than there are codes
    codebook = trained(slice(0, 10) if rank == 0 else slice(10, 60))
    torch.save(codebook.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def half_batches(rank: int, folder: str, keys: Sequence[str]) -> None:
    """Losses and gradients of methods on this process's half of a batch of eight."""
    from .build import batch, build, double, parameters, rows

    meet(rank, folder)
    found = {}
    for key in keys:
        method = build(key).double()
        losses = method(*double(*rows(*batch(method), slice(4 * rank, 4 * rank + 4))))
        losses.total.backward()
        gradients = {name: p.grad for name, p in parameters(method).items() if p.grad is not None}
        found[key] = ({name: loss.detach() for name, loss in losses.items()}, gradients)
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def batch_norm(rank: int, folder: str) -> None:
    """A norm's output, gradients and statistics on half of twelve rows, and sums over processes."""
    from method_zoo.parts.collective import BatchNorm1d, averaged, gathered, summed

    meet(rank, folder)
    rows = torch.randn(12, 5, generator=torch.Generator().manual_seed(0)) * 3 + 1
    mine = rows[6 * rank : 6 * rank + 6].clone().requires_grad_()
    norm = BatchNorm1d(5)
    out = norm(mine)
    out.pow(3).mean().backward()
    lone = rows[6 * rank : 6 * rank + 6].clone().requires_grad_()
    everyone = gathered(lone)
    (everyone @ everyone.T).sigmoid().mean().backward()
    torch.save(
        {
            "out": out.detach(),
            "gradient": mine.grad,
            "state": norm.state_dict(),
            "gathered": everyone.detach(),
            "contrast": lone.grad,
            "sum": summed(torch.tensor(rank + 1.0)),
            "mean": averaged(torch.tensor(rank + 1.0)),
        },
        f"{folder}/{rank}.pt",
    )
    torch.distributed.destroy_process_group()
