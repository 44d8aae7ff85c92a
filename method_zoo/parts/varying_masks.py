"""Masks that hide a different share of each image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from method_zoo.parts.masking import check_ratio, random_blocks, random_scores, ranks
from mimbench import rng
from mimbench.errors import UserError


@dataclass(frozen=True)
class VaryingMask:
    """Half of the images stay whole, of the others a random share is hidden (iBOT, arXiv:2111.07832).

    A share ``whole`` of the images hides nothing; in the others the hidden share is uniform in ``ratio`` -
    ``spread`` to ``ratio`` + ``spread``. It is hidden in blocks as BEiT's, none smaller than a third of the
    grid by a third unless less is missing, or patch by patch (``blocks=False``).
    """

    ratio: float = 0.3
    spread: float = 0.2
    whole: float = 0.5
    blocks: bool = True

    def __post_init__(self) -> None:
        check_ratio(self.ratio)
        if not 0 <= self.spread <= min(self.ratio, 1 - self.ratio):
            raise UserError(
                f"a mask ratio of {self.ratio:g} plus and minus {self.spread:g} leaves the range from 0 "
                "to 1; take a smaller spread"
            )
        if not 0 <= self.whole < 1:
            raise UserError(f"the share of images without a mask must lie in [0, 1), got {self.whole:g}")

    def share(self, keys: Tensor) -> Tensor:
        """What share of its patches each image hides at most, float32 [B]."""
        masked, where = rng.uniform(keys, 2, "mask/share").unbind(1)
        return (self.ratio + self.spread * (2 * where - 1)) * (masked >= self.whole)

    def __call__(self, keys: Tensor, grid: tuple[int, int]) -> Tensor:
        n = grid[0] * grid[1]
        wanted = self.share(keys).double() * n
        if not self.blocks:
            return ranks(random_scores(keys, n)) < wanted.long().unsqueeze(1)
        host = keys.detach().cpu()
        smallest = (min(grid) // 3) ** 2
        mask = random_blocks(host, grid, wanted.cpu().numpy(), smallest)
        return torch.from_numpy(mask).flatten(1).to(keys.device, non_blocking=True)


def most_attended(attention: Tensor, share: Tensor) -> Tensor:
    """Hide the share of patches that gets the most attention, bool [B, N] (AttMask, arXiv:2203.12719).

    attention: [B, N]. share: [B] of each row, float64 where rounding must be the official code's; int(N ·
    share) patches are hidden.
    """
    return ranks(attention) < (attention.shape[1] * share).long().unsqueeze(1)


def reveal_hints(mask: Tensor, attention: Tensor, top: float, share: Tensor, scores: Tensor) -> Tensor:
    """Show again a random few of the most attended patches, bool [B, N] (AttMask's hints).

    top: the share of patches, by attention, out of which hints are drawn. share: [B], of all patches, how
    many are shown. scores: random [B, N], the largest of which decide.
    """
    candidates = most_attended(attention, torch.full_like(share, top))
    return mask & ~most_attended(scores.masked_fill(~candidates, -torch.inf), share)
