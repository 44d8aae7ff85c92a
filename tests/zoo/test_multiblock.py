"""I-JEPA's masks: the statistics of 400 batches of the official sampler, and what every image must get."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp
from torch import Tensor

from method_zoo.parts.multiblock import MultiBlockMask
from mimbench import rng
from mimbench.errors import UserError

GRID = (14, 14)
BATCH = 8  # of the official draws
STEPS = 1200
Z = 4.5  # one value in 150,000 lies further off; the figure takes 340 of them
AS_PUBLISHED = MultiBlockMask(whole_grid=False, companions=BATCH)


def keys(n: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(rng.sample_keys(seed, 0, np.arange(n)))


@cache
def official() -> dict:
    return json.loads((Path(__file__).parent / "figures" / "ijepa.json").read_text())


def deviations(sampler: MultiBlockMask) -> dict[str, float]:
    """How far batches lie off the official ones: position counts in standard errors, token counts in p."""
    figures = official()
    per_step: dict[str, list[np.ndarray]] = {"contexts": [], "targets": []}
    tokens: dict[str, list[int]] = {"contexts": [], "targets": []}
    for step in range(STEPS):
        drawn = sampler(keys(BATCH, seed=step), GRID, step / STEPS)
        for name, index in drawn._asdict().items():
            per_step[name].append(np.bincount(index.flatten().numpy(), minlength=GRID[0] * GRID[1]))
            tokens[name].append(index.shape[2])
    batches = len(figures["context_tokens_per_batch"])
    found = {}
    for name, counts, sizes in (
        ("contexts", "context_position_counts", "context_tokens_per_batch"),
        ("targets", "target_position_counts_of_12800_blocks", "target_tokens_per_batch"),
    ):
        # Images of a batch share block sizes, so what varies independently is the batch.
        ours = np.stack(per_step[name])
        theirs = np.array(figures[counts]).flatten() / batches
        error = ours.std(0) * np.sqrt(1 / STEPS + 1 / batches)
        found[name] = float((np.abs(ours.mean(0) - theirs) / np.maximum(error, 1e-6)).max())
        found[f"{name} tokens p"] = float(ks_2samp(tokens[name], figures[sizes]).pvalue)
    return found


def test_blocks_are_distributed_as_the_official_ones() -> None:
    off = deviations(AS_PUBLISHED)
    assert off["contexts"] < Z, off
    assert off["targets"] < Z, off
    assert min(off["contexts tokens p"], off["targets tokens p"]) > 1e-4, off


@pytest.mark.parametrize(
    "wrong",
    [
        MultiBlockMask(whole_grid=True, companions=BATCH),
        MultiBlockMask(whole_grid=False, companions=128),
        MultiBlockMask(whole_grid=False, companions=BATCH, aspect=(0.4, 1.5)),
        MultiBlockMask(whole_grid=False, companions=BATCH, target_scale=(0.15, 0.22)),
        MultiBlockMask(whole_grid=False, companions=BATCH, targets=3),
    ],
)
def test_other_blocks_are_told_from_the_official_ones(wrong: MultiBlockMask) -> None:
    off = deviations(wrong)
    assert max(off["contexts"], off["targets"]) > Z or min(off.values()) < 1e-4, off


def test_blocks_do_not_depend_on_the_batch_they_were_drawn_in() -> None:
    sampler = MultiBlockMask(companions=4)  # one image in four gets the smallest context
    together = sampler(keys(64), GRID, 0.3)
    alone = [sampler(key[None], GRID, 0.3) for key in keys(64)]
    order = torch.randperm(64)
    shuffled = sampler(keys(64)[order], GRID, 0.3)
    for name in ("contexts", "targets"):
        whole = getattr(together, name)
        assert torch.equal(whole, torch.cat([getattr(one, name) for one in alone], dim=1))
        assert torch.equal(whole[:, order], getattr(shuffled, name))
    assert len(together.targets.transpose(0, 1).flatten(1).unique(dim=0)) > 40
    assert not torch.equal(together.targets, sampler(keys(64, seed=1), GRID, 0.3).targets)


def test_sizes_change_from_step_to_step() -> None:
    shapes = {tuple(b.shape[2] for b in MultiBlockMask()(keys(2), GRID, i / 50)) for i in range(50)}
    assert len({context for context, _ in shapes}) > 10
    assert {target for _, target in shapes} >= {30, 35, 36}


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(4, 16),
    width=st.integers(4, 16),
    contexts=st.integers(1, 2),
    progress=st.floats(0, 1, exclude_max=True),
    whole_grid=st.booleans(),
)
def test_contexts_avoid_targets_and_targets_are_blocks_on_any_grid(
    height: int, width: int, contexts: int, progress: float, whole_grid: bool
) -> None:
    sampler = MultiBlockMask(contexts=contexts, whole_grid=whole_grid, companions=16, min_context=0.0)
    blocks = sampler(keys(12), (height, width), progress)
    assert blocks.contexts.shape[:2] == (contexts, 12)
    assert blocks.targets.shape[:2] == (4, 12)
    assert blocks.contexts.shape[2] >= 1
    for index in (blocks.contexts, blocks.targets):
        assert (index.diff(dim=2) > 0).all(), "raster order, no patch twice"
        assert int(index.min()) >= 0
        assert int(index.max()) < height * width
        rows, columns = index // width, index % width
        if not whole_grid:
            assert int(rows.max()) < height - 1
            assert int(columns.max()) < width - 1
        if index is blocks.targets:
            sides = [axis.amax(2) - axis.amin(2) + 1 for axis in (rows, columns)]
            assert (sides[0] * sides[1] == index.shape[2]).all(), "a full rectangle"
    overlaps = (blocks.contexts[:, :, :, None, None] == blocks.targets.permute(1, 0, 2)[None, :, None]).any(
        dim=(2, 3, 4)
    )
    if min(height, width) >= 8:  # on small grids targets may leave a context nothing
        assert not overlaps.any()


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: MultiBlockMask(target_scale=(0.3, 0.2)), "0.3 to 0.2"),
        (lambda: MultiBlockMask(context_scale=(0.5, 1.5)), "context_scale"),
        (lambda: MultiBlockMask(aspect=(0.0, 1.0)), "aspect"),
        (lambda: MultiBlockMask().check((2, 2)), "2x2"),
        (lambda: MultiBlockMask(target_scale=(0.01, 0.02)).check((4, 4)), "no patch"),
        (lambda: MultiBlockMask(min_context=0.9).check((8, 8)), "min_context"),
    ],
)
def test_impossible_blocks_are_named_in_one_sentence(make, names: str) -> None:
    with pytest.raises(UserError, match=names):
        make()
