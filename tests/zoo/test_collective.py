"""Several processes compute what one would."""

from __future__ import annotations

import torch
from torch import nn
from torch.testing import assert_close

from method_zoo.parts.collective import BatchNorm1d, averaged, gathered, summed

from . import two_processes


def test_batch_statistics_and_contrast_reach_over_processes(tmp_path) -> None:
    torch.multiprocessing.spawn(two_processes.batch_norm, (str(tmp_path),), nprocs=2)
    pair = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    rows = torch.randn(12, 5, generator=torch.Generator().manual_seed(0)) * 3 + 1

    alone, norm = rows.clone().requires_grad_(), nn.BatchNorm1d(5)
    out = norm(alone)
    out.pow(3).mean().backward()
    assert_close(torch.cat([found["out"] for found in pair]), out.detach())
    # Gradients are averaged over processes, each of which took the mean over its half.
    assert_close(torch.cat([found["gradient"] for found in pair]) / 2, alone.grad)
    for found in pair:
        assert_close(found["state"], norm.state_dict())

    contrast = rows.clone().requires_grad_()
    (contrast @ contrast.T).sigmoid().mean().backward()
    for found in pair:
        assert torch.equal(found["gathered"], rows)
        assert float(found["sum"]) == 3
        assert float(found["mean"]) == 1.5
    assert_close(torch.cat([found["contrast"] for found in pair]) / 2, contrast.grad)


def test_one_process_is_left_alone() -> None:
    rows = torch.randn(6, 4, 3)
    assert gathered(rows) is rows
    assert summed(rows) is rows
    assert torch.equal(averaged(rows), rows)
    ours, theirs = BatchNorm1d(4), nn.BatchNorm1d(4)
    assert torch.equal(ours(rows), theirs(rows))
