"""MaskGIT's VQGAN, the tokenizer that MAGE was published with: what gives an image's tokens.

Facts of the architecture: Chang et al. 2022 (arXiv:2202.04200), google-research/maskgit, and its PyTorch
form in LTH14/mage (config/vqgan.yaml) and LTH14/rcg. The names of the parameters are those of the latter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from method_zoo.parts.images import resize_to
from mimbench.checkpoint import load_state
from mimbench.errors import UserError

GROUPS, EPS = 32, 1e-6  # of every group norm
CODES = "quantize.embedding.weight"
DECODER = "decoder."
LARGEST = 1 << 26  # numbers in a layer's output; a published tokenizer's has 2^23 for each image


class Block(nn.Module):
    """Residual block of two convolutions behind norms and SiLUs.

    Where the width changes, what is added is a projection of the block's own output, not of its input: so
    in MaskGIT's code, whose weights these are.
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, inputs, eps=EPS)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(GROUPS, outputs, eps=EPS)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(outputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (self.nin_shortcut(y) if hasattr(self, "nin_shortcut") else x)


class Encoder(nn.Module):
    """Images [B, 3, S, S] to vectors [B, dim, S / 2^n, S / 2^n], n being the levels but one."""

    def __init__(self, width: int, multipliers: Sequence[int], blocks: int, dim: int):
        super().__init__()
        self.conv_in = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.down, channels = nn.ModuleList(), width
        for multiplier in multipliers:
            level = nn.ModuleList()
            for _ in range(blocks):
                level.append(Block(channels, width * multiplier))
                channels = width * multiplier
            self.down.append(nn.ModuleDict({"block": level}))
        self.mid = nn.ModuleDict({f"block_{i}": Block(channels, channels) for i in (1, 2)})
        self.norm_out = nn.GroupNorm(GROUPS, channels, eps=EPS)
        self.conv_out = nn.Conv2d(channels, dim, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_in(images)
        for i, level in enumerate(self.down):
            x = F.avg_pool2d(x, 2) if i else x
            for block in level["block"]:
                x = block(x)
        for block in self.mid.values():
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class VQGAN(nn.Module):
    """The VQGAN's encoder and codes as a ``mimbench.method.Tokenizer``; the published size is the default.

    width: channels of the first level. multipliers: of the levels' widths; each but the first begins by
    halving the side. blocks: a level. dim: of the codes.
    """

    def __init__(
        self,
        vocabulary: int = 1024,
        width: int = 128,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        blocks: int = 2,
        dim: int = 256,
    ):
        super().__init__()
        if width % GROUPS:
            raise UserError(f"this tokenizer's widths are multiples of {GROUPS}; got {width}")
        self.vocabulary = vocabulary
        self.stride = 2 ** (len(multipliers) - 1)
        self.config: dict[str, Any] = {
            "vocabulary": vocabulary,
            "width": width,
            "multipliers": list(multipliers),
            "blocks": blocks,
            "dim": dim,
        }
        self.encoder = Encoder(width, multipliers, blocks, dim)
        self.quantize = nn.ModuleDict({"embedding": nn.Embedding(vocabulary, dim)})

    @torch.no_grad()
    def ids(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """Token ids, int64 [B, H, W] on ``grid``. images: float [B, 3, S, S] in [0, 1], resized to fit.

        In the precision of the weights: which code is nearest must not depend on an encoder's. A few images
        at a time, whose memory would else be many times that of the encoder behind.
        """
        codes = self.quantize["embedding"].weight
        at_once = max(1, LARGEST // (self.config["width"] * grid[0] * grid[1] * self.stride**2))
        found = []
        with torch.autocast(images.device.type, enabled=False):
            for some in images.split(at_once):
                vectors = self.encoder(resize_to(some.to(codes.dtype), grid, self.stride)).movedim(1, -1)
                found.append((codes.square().sum(1) - 2 * vectors @ codes.T).argmin(-1))
        return torch.cat(found)


def is_state(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the weights of such a tokenizer."""
    return {CODES, "encoder.conv_in.weight", "encoder.conv_out.weight"} <= state.keys()


def from_state(state: Mapping[str, Tensor], source: str) -> VQGAN:
    """The tokenizer with the weights of ``state``, which may hold the decoder too, its size read off them."""
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(DECODER)}
    width = len(kept["encoder.conv_in.weight"])
    found = [re.match(r"encoder\.down\.(\d+)\.", name) for name in kept]
    levels = 1 + max((int(match[1]) for match in found if match), default=0)
    blocks = sum(name.startswith("encoder.down.0.block.") and name.endswith("conv1.weight") for name in kept)
    firsts = [f"encoder.down.{i}.block.0.conv1.weight" for i in range(levels)]
    if missing := [name for name in firsts if name not in kept]:
        raise UserError(f"{source} lacks {missing[0]}, so it is no whole VQGAN; get it again")
    widths = [len(kept[name]) for name in firsts]
    vocabulary, dim = kept[CODES].shape
    tokenizer = VQGAN(vocabulary, width, [each // width for each in widths], blocks, dim)
    load_state(tokenizer, kept, source)
    return tokenizer
