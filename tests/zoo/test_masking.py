"""Mask samplers against the statistics of 3,000 draws of the official generators, and a naive rendering."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from method_zoo.parts.inverse_block import InverseBlockMask
from method_zoo.parts.masking import BlockMask, GridMask, RandomMask, mask_from_scores, random_scores, ranks
from method_zoo.parts.varying_masks import VaryingMask
from mimbench import rng
from mimbench.errors import UserError

OFFICIAL = {
    "simmim": RandomMask(0.6, unit=2),  # 224 pixels, cells of 32, patches of 16
    "beit_v1": BlockMask(count=75, min_block=16),
    "beit_v2": BlockMask(count=75, min_block=16, exact=True),
    "ibot": VaryingMask(),
    "cae": BlockMask(count=98, min_block=16, attempts=1000),
    "bootmae": BlockMask(count=120, min_block=16, max_block=60, attempts=1000),
    "data2vec": BlockMask(count=120, min_block=16),
    "capi": InverseBlockMask(0.65),
    "ummae": GridMask(),
}
SAMPLERS = [
    *OFFICIAL.values(),
    RandomMask(0.75),
    BlockMask(ratio=0.4, min_block=4, max_block=30),
    VaryingMask(blocks=False),
    InverseBlockMask(0.8, roll=False),
]
DRAWS = 6000
Z = 4.5  # one value in 150,000 lies further off; a figure takes some 200 of them


def keys(n: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(rng.sample_keys(seed, 0, np.arange(n)))


def figures(name: str) -> dict:
    return json.loads((Path(__file__).parent / "figures" / f"{name}.json").read_text())


def neighbours(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """Hidden patches among the 4 neighbours of a hidden patch, mean over the patches of each row, [B]."""
    padded = torch.nn.functional.pad(mask.view(-1, *grid).float(), (1, 1, 1, 1))
    around = padded[:, 2:, 1:-1] + padded[:, :-2, 1:-1] + padded[:, 1:-1, 2:] + padded[:, 1:-1, :-2]
    return (around.flatten(1) * mask).sum(1) / mask.sum(1)


def deviations(mask: Tensor, official: dict) -> dict[str, float]:
    """How far draws lie off the official ones: the largest of each kind, in standard errors."""
    n, m = len(mask), official["draws"]
    ours = mask.double().mean(0)
    theirs = torch.tensor(official["position_counts"]).flatten().double() / m
    pooled = (ours * n + theirs * m) / (n + m)
    position = (ours - theirs).abs() / (pooled * (1 - pooled) * (1 / n + 1 / m)).sqrt().clamp_min(1e-12)

    hiding = mask[mask.any(1)]  # some samplers leave images whole
    near, weight = neighbours(hiding, tuple(official["grid"])), hiding.sum(1).float()
    mean = (near * weight).sum() / weight.sum()  # over all hidden patches
    off = abs(float(mean) - official["mean_masked_4_neighbours"])
    # the official figure is one number; its draws are taken to spread as ours do
    spread = float((weight * (near - mean) / weight.mean()).std())
    share = len(hiding) / n
    neighbour = off / max(spread * math.sqrt((1 / n + 1 / m) / share), 1e-12)

    counts = Counter(mask.sum(1).tolist())
    count = 0.0
    for hidden in counts.keys() | {int(k) for k in official["count_histogram"]}:
        a, b = counts.get(hidden, 0), official["count_histogram"].get(str(hidden), 0)
        p = (a + b) / (n + m)
        if p < 1:
            count = max(count, abs(a / n - b / m) / math.sqrt(p * (1 - p) * (1 / n + 1 / m)))
    return {"position": float(position.max()), "neighbours": neighbour, "count": count}


@pytest.mark.parametrize("name", OFFICIAL)
def test_masks_are_distributed_as_the_official_ones(name: str) -> None:
    official = figures(name)
    off = deviations(OFFICIAL[name](keys(DRAWS), tuple(official["grid"])), official)
    assert all(value < Z for value in off.values()), off


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("simmim", RandomMask(0.6)),
        ("beit_v1", BlockMask(count=75, min_block=8)),
        ("beit_v1", BlockMask(count=75, min_block=16, min_aspect=0.6)),
        ("beit_v1", BlockMask(count=75, min_block=16, exact=True)),
        ("beit_v2", BlockMask(count=75, min_block=16)),
        ("cae", BlockMask(count=98, min_block=16, exact=True)),
        ("bootmae", BlockMask(count=120, min_block=16, attempts=1000)),
        ("beit_v2", BlockMask(count=76, min_block=16, exact=True)),
        ("ibot", VaryingMask(spread=0.15)),
        ("ibot", VaryingMask(whole=0.45)),
        ("ibot", VaryingMask(blocks=False)),
        ("capi", InverseBlockMask(0.65, roll=False)),
        ("capi", BlockMask(count=127, exact=True)),
        ("capi", InverseBlockMask(0.645)),
        ("ummae", RandomMask(0.75)),
    ],
)
def test_other_masks_are_told_from_the_official_ones(name: str, wrong) -> None:
    official = figures(name)
    off = deviations(wrong(keys(DRAWS), tuple(official["grid"])), official)
    assert any(value >= Z for value in off.values()), off


def blocks_naively(sampler: BlockMask, key: int, grid: tuple[int, int], wanted: int) -> np.ndarray:
    """BEiT's algorithm for one image, patch by patch, on the sampler's random numbers."""
    height, width = grid
    draws = iter(
        np.concatenate(
            [rng.uniform(torch.tensor([key]), 64, f"mask/blocks/{i}").double().numpy()[0] for i in range(80)]
        )
    )
    mask, count = np.zeros(grid, dtype=bool), 0
    while count < wanted:
        limit = min(wanted - count, sampler.max_block or wanted)
        added = 0
        for _ in range(10):
            area, aspect, top, left = (next(draws) for _ in range(4))
            area = min(sampler.min_block, wanted) * (1 - area) + limit * area
            aspect = sampler.min_aspect ** (1 - 2 * aspect)
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if not (h < height and w < width):
                continue
            y, x = int(top * (height - h + 1)), int(left * (width - w + 1))
            fresh = [(i, j) for i in range(y, y + h) for j in range(x, x + w) if not mask[i, j]]
            if 0 < len(fresh) <= limit:
                for place in fresh:
                    mask[place] = True
                added = len(fresh)
                break
        if not added:
            break
        count += added
    return mask


@pytest.mark.parametrize(
    "sampler", [BlockMask(ratio=75 / 196), BlockMask(ratio=0.4, min_block=4, max_block=9)], ids=repr
)
@pytest.mark.parametrize("grid", [(14, 14), (8, 8), (6, 11)])
def test_blocks_of_a_batch_equal_blocks_drawn_one_by_one(sampler: BlockMask, grid: tuple[int, int]) -> None:
    several = keys(40)
    masks = sampler(several, grid).view(-1, *grid).numpy()
    for mask, key in zip(masks, several.tolist(), strict=True):
        assert np.array_equal(mask, blocks_naively(sampler, key, grid, sampler.n_hidden(grid)))


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_a_mask_does_not_depend_on_the_batch_it_was_drawn_in(sampler) -> None:
    together = sampler(keys(64), (14, 14))
    assert together.shape == (64, 196)
    assert together.dtype == torch.bool
    alone = torch.cat([sampler(key[None], (14, 14)) for key in keys(64)])
    assert torch.equal(together, alone)
    order = torch.randperm(64)
    assert torch.equal(together[order], sampler(keys(64)[order], (14, 14)))
    hiding = together[together.any(1)]  # some samplers leave images whole
    assert len(hiding) > 20
    assert len(hiding.unique(dim=0)) > 0.9 * len(hiding)  # single blocks come in few shapes
    assert not torch.equal(together, sampler(keys(64, seed=1), (14, 14)))


@settings(max_examples=60, deadline=None)
@given(
    ratio=st.floats(0.05, 0.95),
    height=st.integers(2, 9),
    width=st.integers(2, 9),
    unit=st.sampled_from([1, 1, 2, 3]),
)
def test_the_ratio_is_exact_and_equal_over_the_batch(
    ratio: float, height: int, width: int, unit: int
) -> None:
    sampler = RandomMask(ratio, unit)
    grid = (height * unit, width * unit)
    cells = height * width
    hidden = cells - int(cells * (1 - ratio)) if unit == 1 else math.ceil(cells * ratio)
    if hidden in (0, cells):
        with pytest.raises(UserError, match=r"every patch|no patch"):
            sampler(keys(5), grid)
        return
    mask = sampler(keys(5), grid)
    assert (mask.sum(1) == hidden * unit**2).all()
    whole_cells = mask.view(5, height, unit, width, unit).float().mean((2, 4))
    assert ((whole_cells == 0) | (whole_cells == 1)).all()


@settings(max_examples=40, deadline=None)
@given(
    ratio=st.floats(0.1, 0.9), height=st.integers(2, 12), width=st.integers(2, 12), block=st.integers(1, 40)
)
def test_block_masks_never_hide_more_than_asked_on_any_grid(
    ratio: float, height: int, width: int, block: int
) -> None:
    wanted = round(ratio * height * width)
    if not 0 < wanted < height * width:
        return
    given_keys = keys(20)
    assert (BlockMask(ratio=ratio, min_block=block)(given_keys, (height, width)).sum(1) <= wanted).all()
    exact = BlockMask(ratio=ratio, min_block=block, exact=True)
    assert (exact(given_keys, (height, width)).sum(1) == wanted).all()


def test_the_exact_count_only_adds_to_the_blocks() -> None:
    blocks = OFFICIAL["beit_v1"](keys(500), (14, 14))
    exact = OFFICIAL["beit_v2"](keys(500), (14, 14))
    assert (blocks <= exact).all()
    assert (blocks.sum(1) < 75).any(), "no row needed filling up: the test could not fail"


def test_a_varying_share_of_scattered_patches_is_the_share_that_was_drawn() -> None:
    sampler = VaryingMask(ratio=0.4, spread=0.3, whole=0.25, blocks=False)
    hidden = sampler(keys(4000), (7, 9)).sum(1)
    assert torch.equal(hidden, (sampler.share(keys(4000)).double() * 63).long())
    assert abs(float((hidden == 0).double().mean()) - 0.25) < 0.03
    assert int(hidden[hidden > 0].min()) == 6  # 10 percent of 63
    assert int(hidden.max()) == 44


def test_ranks_hide_the_same_patches_as_scores() -> None:
    scores = random_scores(keys(50), 30).mul(10).round()  # many are equal
    for n in (1, 7, 29):
        assert torch.equal(ranks(scores) < n, mask_from_scores(scores, n))


def test_keys_of_two_views_draw_unrelated_masks() -> None:
    one, other = (rng.branch(keys(4000), f"view {i}") for i in range(2))
    assert len(set(one.tolist()) | set(other.tolist()) | set(keys(4000).tolist())) == 12000
    first, second = (rng.uniform(k, 1, "mask").flatten().double() for k in (one, other))
    plain = rng.uniform(keys(4000), 1, "mask").flatten().double()
    correlations = torch.corrcoef(torch.stack([first, second, plain]))
    assert float((correlations - torch.eye(3)).abs().max()) < 0.07


@pytest.mark.parametrize("roll", [True, False])
@pytest.mark.parametrize("grid", [(14, 14), (4, 4), (8, 8), (7, 3)])
@pytest.mark.parametrize("ratio", [0.1, 0.65, 0.95])
def test_what_an_inverse_block_shows_is_one_block(grid: tuple[int, int], ratio: float, roll: bool) -> None:
    """Drawn cell by cell on the sampler's own numbers: a rectangle, its last row cut off, moved."""
    sampler = InverseBlockMask(ratio, roll)
    height, width = grid
    visible = height * width - int(height * width * ratio)
    several = keys(200)
    masks = sampler(several, grid).view(-1, *grid).numpy()
    draws = rng.uniform(several, 3, "mask").double().numpy()
    for mask, (aspect, down, right) in zip(masks, draws, strict=True):
        low = max(math.log(0.5), math.log(visible / width**2))
        high = min(math.log(2), math.log(height**2 / (visible + 1e-5)))
        ratio_of_sides = math.exp(low + (high - low) * aspect)
        h = min(height, math.ceil(math.sqrt(visible * ratio_of_sides)))
        w = min(width, math.ceil(math.sqrt(visible / ratio_of_sides)))
        top = int(down * (height if roll else height - h + 1))
        left = int(right * (width if roll else width - w + 1))
        shown = [((top + i) % height, (left + j) % width) for i in range(h) for j in range(w)][:visible]
        expected = np.ones(grid, dtype=bool)
        for place in shown:
            expected[place] = False
        assert len(set(shown)) == visible
        assert np.array_equal(mask, expected)


def test_mae_keeps_as_many_patches_as_the_official_code() -> None:
    kept = (~RandomMask(0.75)(keys(4), (14, 14))).sum(1)
    assert kept.tolist() == [49] * 4


@pytest.mark.parametrize(("ratio", "hidden"), [(0.9, 176), (0.75, 147), (0.6, 117)])
def test_croco_hides_as_many_patches_as_the_official_code(ratio: float, hidden: int) -> None:
    masks = RandomMask(ratio, hide_fewer=True)(keys(4), (14, 14))
    assert masks.sum(1).tolist() == [hidden] * 4


def test_of_equal_scores_the_earlier_patch_is_hidden() -> None:
    scores = torch.tensor([[0.5, 0.9, 0.5, 0.5], [0.0, 0.0, 0.0, 0.0]])
    assert mask_from_scores(scores, 2).tolist() == [[True, True, False, False], [True, True, False, False]]
    assert not mask_from_scores(scores, 0).any()
    assert mask_from_scores(scores, 4).all()


def test_scores_of_two_purposes_are_unrelated() -> None:
    a, b = random_scores(keys(400), 50), random_scores(keys(400), 50, "other")
    assert abs(float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])) < 0.03
    assert abs(float(a.mean()) - 0.5) < 0.01


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: RandomMask(1.5), "1.5"),
        (lambda: RandomMask(0.0), "mask ratio"),
        (lambda: RandomMask(0.5, unit=0), "mask unit"),
        (lambda: RandomMask(0.6, unit=4)(keys(2), (14, 14)), "14x14"),
        (lambda: RandomMask(0.6, unit=4)(keys(2), (4, 4)), "every patch"),
        (lambda: RandomMask(0.99)(keys(2), (4, 4)), "every patch"),
        (lambda: BlockMask(ratio=0.01)(keys(2), (4, 4)), "no patch"),
        (lambda: BlockMask(count=16)(keys(2), (4, 4)), "every patch"),
        (lambda: BlockMask(), "either a ratio or a count"),
        (lambda: VaryingMask(ratio=0.3, spread=0.4), "smaller spread"),
        (lambda: VaryingMask(whole=1.0), "without a mask"),
        (lambda: InverseBlockMask(1.2), "1.2"),
        (lambda: InverseBlockMask(0.05)(keys(2), (4, 4)), "no patch"),
        (lambda: InverseBlockMask(0.5, min_aspect=0.0), "aspect ratio"),
        (lambda: BlockMask(ratio=0.4, count=75), "either a ratio or a count"),
        (lambda: BlockMask(ratio=1.4), "1.4"),
        (lambda: BlockMask(ratio=0.4, min_block=9, max_block=4), "9 and 4"),
        (lambda: BlockMask(ratio=0.4, min_aspect=0.0), "aspect"),
    ],
)
def test_an_impossible_mask_is_named_in_one_sentence(make, names: str) -> None:
    with pytest.raises(UserError, match=names):
        make()
