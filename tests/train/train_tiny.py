"""A method and a dataset that train in milliseconds, with every kind of state a method may have."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mimbench import rng
from mimbench.data.sources.base import DataDefaults
from mimbench.method import Losses, Method, Step
from mimbench.spec import Budget, Card, Recipe, Setting

SIZE = 4

RECIPE = Recipe(base_lr=0.02, lr_rule="absolute", batch_size=8, warmup=0.2, clip_grad=1.0, source="test")

CARD = {
    "name": "Tiny",
    "paper": "none",
    "role": "floor",
    "scheme": "reconstruction",
    "masking": "random",
    "target": "pixels",
    "architecture": "mlp",
    "objective": "mse",
    "recipe": RECIPE,
    "parity": "baseline",
}


class TinyBackbone(nn.Module):
    """A perceptron with a block that sees [B, tokens, D], as transformer blocks do."""

    def __init__(self, dropout: float = 0.0, batch_norm: bool = False):
        super().__init__()
        self.config = {"name": "tiny", "image_size": SIZE}
        self.embed_dim, self.depth, self.grid = 16, 1, (1, 1)
        self.blocks = nn.ModuleList([nn.Linear(3 * SIZE * SIZE, 16)])
        self.norm = nn.BatchNorm1d(16) if batch_norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def forward(self, images: Tensor) -> Tensor:
        return self.dropout(self.norm(self.blocks[0](images.flatten(1)[:, None])[:, 0]).relu())


class Tiny(Method):
    """Hides pixels by the samples' keys, reconstructs them, and follows its own moving average."""

    card = Card(key="tiny", **CARD)

    def __init__(self, backbone: nn.Module | None = None, *, width: int = 16):
        super().__init__()
        self.encoder = backbone or TinyBackbone()
        self.decoder = nn.Linear(width, 3 * SIZE * SIZE)
        self.teacher = copy.deepcopy(self.encoder).requires_grad_(False)
        self.unused = nn.Parameter(torch.ones(2, 2))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.seen: list[Step] = []
        self.images: list[Tensor] = []
        self.log = False  # keep what comes in

    def forward(self, images: Tensor, step: Step) -> Losses:
        if self.log:
            self.seen.append(step)
            self.images.append(images)
        flat = images.flatten(1)
        hidden = rng.uniform(step.keys, flat.shape[1], "tiny").to(flat.device) < 0.5
        tokens = self.encoder((flat * ~hidden).view_as(images))
        with torch.no_grad():
            target = self.teacher(images)
        return Losses(
            pixels=(self.decoder(tokens).float() - flat).square().mean(),
            teacher=0.1 * (tokens.float() - target.float()).square().mean(),
        )

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        self.steps += 1
        for mine, own in zip(self.teacher.parameters(), self.encoder.parameters(), strict=True):
            mine.lerp_(own, 0.1)


class Labelled(Tiny):
    """Learns from labels as well."""

    card = Card(key="tiny_labelled", external="labels", **CARD)


class Untrained(Tiny):
    """Has no recipe."""

    card = Card(key="tiny_untrained", **{**CARD, "recipe": None})


class TinyTokenizer(Tiny):
    """A tokenizer's product is one file."""

    card = Card(key="tiny_tokenizer", **{**CARD, "role": "tokenizer"})
    config = {"width": 16}


def stateful(seed: int = 0) -> Tiny:
    """With batch norm (buffers) and dropout (torch's global generator)."""
    torch.manual_seed(seed)
    return Tiny(TinyBackbone(dropout=0.2, batch_norm=True))


class TinySplit:
    """Random images."""

    name = "train"

    def __init__(self, count: int, labelled: bool):
        draw = np.random.default_rng(0)
        self.pixels = draw.integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
        self.labels = np.arange(count) % 3 if labelled else None

    def __len__(self) -> int:
        return len(self.pixels)

    def image(self, index: int) -> np.ndarray:
        return self.pixels[index]


def dataset(count: int = 20, labelled: bool = True, flip: bool = False) -> Any:
    """What pretrain reads of a Dataset."""
    return SimpleNamespace(
        name="tiny",
        train=TinySplit(count, labelled),
        fingerprint="f",
        defaults=DataDefaults(image_size=SIZE, backbone="tiny", crop_pct=1.0, flip=flip),
        describe=lambda: {"name": "tiny"},
    )


def setting(amount: float = 4, unit: str = "epochs", batch_size: int = 8, precision: str = "fp32") -> Setting:
    return Setting(
        data="tiny",
        fingerprint="f",
        image_size=SIZE,
        backbone="tiny",
        budget=Budget(unit=unit, amount=amount),
        recipe="paper",
        batch_size=batch_size,
        precision=precision,
    )


def weights(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "method.safetensors")
