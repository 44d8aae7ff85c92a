"""CAPI's encoder with the first block of its predictor, out of which its global vector comes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from method_zoo.backbones.initial import xavier_
from method_zoo.backbones.rope_vit import RopeViT
from method_zoo.backbones.rotary import RotaryBlock
from mimbench.errors import UserError


class GlobalRopeViT(RopeViT):
    """CAPI's encoder that gives its global vector as class token (Darcet et al., 2025, arXiv:2502.08769).

    A mask token at the place of each patch looks at all of the encoder's tokens, through the final norm, in
    the predictor's first block; what comes out, through the same norm, is averaged. As a class token it goes
    through the final norm once more, which keeps its direction; the code's own vector is the last block's
    without (``Readout(token="cls", norm="raw")``). The class token of an earlier block, for which there is
    no official one, is what the predictor makes of that block's tokens.

    cls_token: "predictor", which names all this.
    """

    def __init__(self, *, cls_token: Literal["predictor"] = "predictor", **options: Any):
        super().__init__(**options)
        self.config |= {"cls_token": cls_token}
        self.summary_token = nn.Parameter(torch.empty(1, self.embed_dim))
        self.summary = RotaryBlock(self.embed_dim, self.num_heads)
        xavier_(self.summary)
        nn.init.normal_(self.summary_token, std=0.02)

    def summarised(self, tokens: Tensor, places: Tensor, grid: tuple[int, int]) -> Tensor:
        """The global vector, see ``RopeViT.summarised``."""
        asked = self.summary_token.expand(len(tokens), grid[0] * grid[1], -1)
        here = self.rotary(self.places(grid).unsqueeze(0))
        answers = self.summary(asked, here, self.norm(tokens), self.rotary(places))
        return self.norm(answers).mean(1)

    def attentions(self, images: Tensor, layers: Sequence[int]) -> tuple[Tensor, ...]:
        """UserError: the class token comes after the blocks, so that no row of their attention is its."""
        raise UserError(
            "CAPI's global vector is not among the tokens of the blocks, so there is no attention of it; "
            "name the weights without -global"
        )

    def no_weight_decay(self) -> set[str]:
        """See ``Transformer``."""
        return super().no_weight_decay() | {"summary_token"}
