"""Exact nearest neighbours by cosine similarity, block by block, and their weighted vote."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 2**25  # similarities held at once: 128 MB
BANK_BLOCK = 2**16  # of the bank; smaller banks are taken whole, which spares merging


class Neighbours(NamedTuple):
    """The nearest of each query, nearest first; of equally near ones the earlier in the bank first."""

    similarity: Tensor  # float32 [q, k]
    index: Tensor  # int64 [q, k], into the bank


def unit(features: Tensor) -> Tensor:
    """Rows scaled to length one; a row of zeros stays."""
    return F.normalize(features, dim=1)


def block_shape(queries: int, bank: int) -> tuple[int, int]:
    """How many queries and how much of the bank are compared at once."""
    width = min(BANK_BLOCK, bank)
    return max(1, min(queries, BLOCK // width)), width


def nearest(queries: Tensor, bank: Tensor, k: int) -> Iterator[tuple[slice, Neighbours]]:
    """The ``k`` nearest of each query, for one block of queries after the other.

    queries: [M, D], bank: [N, D], both of unit rows and k <= N. Holds 128 MB of similarities at a time,
    whatever M and N.
    """
    height, width = block_shape(len(queries), len(bank))
    similarity = torch.empty(height * width, device=queries.device)
    for first in range(0, len(queries), height):
        rows = slice(first, min(first + height, len(queries)))
        found: Neighbours | None = None
        for start in range(0, len(bank), width):
            columns = bank[start : start + width]
            block = similarity[: (rows.stop - rows.start) * len(columns)].view(-1, len(columns))
            torch.mm(queries[rows], columns.T, out=block)
            here = _highest(block, min(k, len(columns)))
            here = Neighbours(here.similarity, here.index + start)
            found = here if found is None else _merge(found, here, k)
        assert found is not None
        yield rows, found


def _highest(block: Tensor, k: int) -> Neighbours:
    """The ``k`` highest of each row of ``block`` [q, n], in the order of ``Neighbours``.

    ``topk`` leaves open which of equal values it takes and in what order. Equal values are rare, so it
    does the work, and only the rows that have them are put right.
    """
    values, index = block.topk(min(k + 1, block.shape[1]), dim=1)
    if values.shape[1] > k:
        cut = (values[:, k - 1] == values[:, k]).nonzero().squeeze(1)
        values, index = values[:, :k].contiguous(), index[:, :k].contiguous()
        for rows in cut.split(64):  # few at a time: what they need is as large as their part of the block
            values[rows], index[rows] = _highest_of_equals(block[rows], values[rows, -1:], k)
    equal = (values[:, 1:] == values[:, :-1]).any(1).nonzero().squeeze(1)
    if len(equal):
        index[equal], order = index[equal].sort(dim=1)
        values[equal], order = values[equal].gather(1, order).sort(dim=1, descending=True, stable=True)
        index[equal] = index[equal].gather(1, order)
    return Neighbours(values, index)


def _highest_of_equals(rows: Tensor, lowest: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """All values above ``lowest`` [q, 1], filled up to ``k`` with the first ones equal to it; any order."""
    above, at = rows > lowest, rows == lowest
    room = k - above.sum(1, keepdim=True)
    kept = above | (at & (at.cumsum(1, dtype=torch.int32) <= room))
    index = kept.nonzero()[:, 1].view(-1, k)
    return rows.gather(1, index), index


def _merge(before: Neighbours, here: Neighbours, k: int) -> Neighbours:
    """The ``k`` highest of two parts of the bank, ``before`` lying before ``here``."""
    values = torch.cat([before.similarity, here.similarity], 1)
    values, order = values.sort(dim=1, descending=True, stable=True)
    index = torch.cat([before.index, here.index], 1).gather(1, order)
    return Neighbours(values[:, :k].contiguous(), index[:, :k].contiguous())


class Votes(NamedTuple):
    """What the neighbours say, for each k."""

    prediction: Tensor  # int64 [ks, q]; between equal votes the lower class
    share: Tensor  # float64 [ks, q], of the votes for the true class


def vote(
    found: Neighbours,
    bank_labels: Tensor,
    labels: Tensor,
    classes: int,
    ks: Sequence[int],
    t: float,
    allowed: Tensor | None = None,
) -> Votes:
    """Votes weighted by exp(similarity / t), as in DINO's k-NN (arXiv:2104.14294), for every k at once.

    bank_labels: int64 [N]; labels: the queries' own, int64 [q]; ks: ascending, none above the k of
    ``found``; allowed: bool [q, classes], what may be predicted. The highest similarity is subtracted
    first, which changes no vote's share and keeps exp(1 / 0.07) from overflowing wherever numbers are
    short; sums are float64.
    """
    weights = ((found.similarity - found.similarity[:, :1]) / t).exp_().double()
    said = bank_labels[found.index]
    votes = weights.new_zeros(len(said), classes)
    predictions, shares, before = [], [], 0
    for k in ks:
        votes.scatter_add_(1, said[:, before:k], weights[:, before:k])
        counted = votes if allowed is None else votes.masked_fill(~allowed, -1)  # below no vote at all
        predictions.append(counted.argmax(1))
        shares.append(votes.gather(1, labels[:, None]).squeeze(1) / votes.sum(1))
        before = k
    return Votes(torch.stack(predictions), torch.stack(shares))
