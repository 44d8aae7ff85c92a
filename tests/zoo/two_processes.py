"""One of two processes that share a codebook. Imports little, because each process starts anew."""

from __future__ import annotations

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


def run(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    # unequal shares, one of them with fewer vectors than there are codes
    codebook = trained(slice(0, 10) if rank == 0 else slice(10, 60))
    torch.save(codebook.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()
