"""OpenAI's dVAE, the tokenizer that BEiT was published with: its encoder, and a reader of its weights.

Facts of the architecture: Ramesh et al. 2021 (arXiv:2102.12092), appendix A, and openai/DALL-E. The
names of the parameters are the official ones, so official weights load strictly.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from method_zoo.parts.images import resize_to
from mimbench.checkpoint import load_state
from mimbench.errors import UserError
from mimbench.weights import foreign

GROUPS = 4
STRIDE = 8  # a max-pool of 2 after each group but the last
EPS = 0.1  # of the logit-Laplace distribution: pixels are mapped into [EPS, 1 - EPS]
OFFICIAL = "OpenAI's dVAE (https://cdn.openai.com/dall-e/encoder.pkl)"


class Conv(nn.Module):
    """A convolution at stride 1 that keeps the size, with its parameters under their official names."""

    def __init__(self, inputs: int, outputs: int, kernel: int):
        super().__init__()
        self.w = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel) / (inputs * kernel**2) ** 0.5)
        self.b = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.w, self.b, padding=self.w.shape[-1] // 2)


class Block(nn.Module):
    """Bottleneck residual block before whose every convolution stands a ReLU."""

    def __init__(self, inputs: int, outputs: int, gain: float):
        super().__init__()
        inner = outputs // 4
        self.gain = gain
        self.id_path = Conv(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        path: OrderedDict[str, nn.Module] = OrderedDict()
        widths, kernels = (inputs, inner, inner, inner, outputs), (3, 3, 3, 1)
        for i, kernel in enumerate(kernels, start=1):
            path[f"relu_{i}"] = nn.ReLU()
            path[f"conv_{i}"] = Conv(widths[i - 1], widths[i], kernel)
        self.res_path = nn.Sequential(path)

    def forward(self, x: Tensor) -> Tensor:
        return self.id_path(x) + self.gain * self.res_path(x)


class DalleEncoder(nn.Module):
    """The dVAE's encoder as a ``mimbench.method.Tokenizer``; the published size is the default.

    width: channels of the first group; each later one doubles them. blocks: a group.
    """

    def __init__(self, vocabulary: int = 8192, width: int = 256, blocks: int = 2):
        super().__init__()
        self.vocabulary = vocabulary
        self.config = {"vocabulary": vocabulary, "width": width, "blocks": blocks}
        gain = 1 / (GROUPS * blocks) ** 2
        self.blocks = nn.Sequential(OrderedDict(input=Conv(3, width, 7)))
        channels = width
        for group in range(GROUPS):
            layers: OrderedDict[str, nn.Module] = OrderedDict()
            for i in range(blocks):
                layers[f"block_{i + 1}"] = Block(channels, width << group, gain)
                channels = width << group
            if group < GROUPS - 1:
                layers["pool"] = nn.MaxPool2d(2)
            self.blocks.add_module(f"group_{group + 1}", nn.Sequential(layers))
        output = OrderedDict(relu=nn.ReLU(), conv=Conv(channels, vocabulary, 1))
        self.blocks.add_module("output", nn.Sequential(output))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, vocabulary, S/8, S/8]. images: float [B, 3, S, S] in [0, 1]."""
        return self.blocks(images * (1 - 2 * EPS) + EPS)

    @torch.no_grad()
    def ids(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """Token ids, int64 [B, H, W] on ``grid``. images: float [B, 3, S, S] in [0, 1], resized to fit."""
        with torch.autocast(images.device.type, enabled=False):
            return self(resize_to(images.float(), grid, STRIDE)).argmax(1)


def from_state(state: Mapping[str, Tensor], source: str) -> DalleEncoder:
    """The encoder with the weights of ``state``, its size read off them; UserError where they are none."""
    first, last = state.get("blocks.input.w"), state.get("blocks.output.conv.w")
    if first is None or last is None or first.ndim != 4 or last.ndim != 4 or first.shape[1] != 3:
        raise UserError(
            f"{source} does not hold the encoder of {OFFICIAL}; give that file, its state dict, or a "
            "tokenizer.safetensors that mimbench wrote"
        )
    blocks = sum(name.startswith("blocks.group_1.") and name.endswith(".conv_1.w") for name in state)
    encoder = DalleEncoder(vocabulary=last.shape[0], width=first.shape[0], blocks=max(blocks, 1))
    load_state(encoder, state, source)
    return encoder


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a PyTorch file: a state dict, or the whole module as OpenAI published it.

    Nothing that the file brings is run, see ``mimbench.weights.foreign``. Raises UserError where it asks for
    that, or is no such file.
    """
    content = foreign.read(path)
    if isinstance(content, foreign.Stored):
        return _module_state(content, depth=0)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    named = content.items() if isinstance(content, Mapping) else ()
    return {str(name): value for name, value in named if isinstance(value, Tensor)}


def _module_state(module: Any, depth: int) -> dict[str, Tensor]:
    """Names and tensors of a stored module, as its own ``state_dict`` would give them."""
    stored = (
        vars(module) if isinstance(module, foreign.Stored) and depth < 16 else {}
    )  # a file may hold a loop
    state = {}
    for name, value in [*_items(stored, "_parameters"), *_items(stored, "_buffers")]:
        if isinstance(value, Tensor):
            state[name] = value.detach()
    for name, child in _items(stored, "_modules"):
        state |= {f"{name}.{inner}": value for inner, value in _module_state(child, depth + 1).items()}
    return state


def _items(stored: Mapping[str, Any], kind: str) -> list[tuple[str, Any]]:
    value = stored.get(kind)
    return [(str(k), v) for k, v in value.items()] if isinstance(value, Mapping) else []
