"""Masks that a teacher's attention guides."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from method_zoo.parts.masking import RandomMask, check_ratio, mask_from_scores
from mimbench import rng
from mimbench.encoder import Encoded
from mimbench.errors import UserError


def weighted_order(keys: Tensor, weights: Tensor, purpose: str = "mask/weighted") -> Tensor:
    """Scores [B, N], float32, whose ascending order is a draw without replacement, likely patches first.

    The first patch is drawn with probability proportional to its weight, each next one likewise among
    those left: what ``torch.multinomial`` draws in MILAN (arXiv:2208.06049) and MaskAlign
    (arXiv:2211.08887). Drawn as arrival times of exponential clocks whose rates are the weights, which is
    the Gumbel top-k trick (arXiv:1903.06059) before its logarithm: a row depends on its own key alone.

    weights: non-negative [B, N]; a patch of weight 0 comes after every other one.
    """
    clocks = -torch.log1p(-rng.uniform(keys, weights.shape[1], purpose))
    return clocks.clamp(min=1e-30) / weights.float()


@dataclass(frozen=True)
class AttentionMask:
    """Keeps patches in proportion to a teacher's attention: those it looks at are more likely visible.

    Drawn without replacement with the weights that the class token gives the patches in the teacher's last
    block, averaged over heads, as MILAN (arXiv:2208.06049) and MaskAlign (arXiv:2211.08887) do.
    int(N·(1 - ratio)) patches stay visible.
    """

    ratio: float

    def __post_init__(self) -> None:
        check_ratio(self.ratio)

    def __call__(self, keys: Tensor, seen: Encoded) -> Tensor:
        """Hidden patches, bool [B, N]. seen: what the teacher made of the whole images, with attention."""
        if seen.cls is None or seen.attention is None:
            raise UserError(
                "masks guided by a teacher's attention take a teacher with a class token; "
                "set masking=random or choose another teacher"
            )
        n = seen.patches.shape[1]
        weights = seen.attention[:, :, 0, -n:].mean(1)
        n_hidden = RandomMask(self.ratio).hidden_cells((1, n))
        return mask_from_scores(weighted_order(keys, weights), n_hidden)
