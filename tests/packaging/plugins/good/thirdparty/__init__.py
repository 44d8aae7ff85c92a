"""What somebody else might install beside mimbench: a method, a protocol, a dataset and a backbone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from mimbench.data.sources import DataDefaults, Listing, Part
from mimbench.encoder import Encoded
from mimbench.method import Losses, Method, Step
from mimbench.outcomes import Hits
from mimbench.protocol import Evaluation, Protocol
from mimbench.spec import Card, Readout, Recipe


class MeanColour(Method):
    """Predicts an image's mean colour from its tokens."""

    card = Card(
        key="meancolour",
        name="Mean colour",
        paper="A third party's method",
        year=2024,
        arxiv="0000.00000",
        scheme="reconstruction",
        masking="none",
        target="mean colour",
        architecture="any",
        objective="mean squared error",
        recipe=Recipe(base_lr=1e-3, batch_size=256, source="made up"),
        parity="no official code",
    )

    def __init__(self, backbone: nn.Module, *, weight: Annotated[float, Field(gt=0)] = 1.0):
        super().__init__()
        self.encoder = backbone
        self.head = nn.Linear(backbone.embed_dim, 3)
        self.weight = weight

    def forward(self, images: Tensor, step: Step) -> Losses:
        tokens = self.encoder.encode(images).patches.mean(1)
        error = self.head(tokens) - images.mean((2, 3))
        return Losses(colour=self.weight * error.square().mean())


@dataclass(frozen=True)
class NearestMean(Protocol):
    """The class whose mean feature is nearest."""

    key: ClassVar[str] = "nearestmean"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "Nearest class mean of frozen features"

    def evaluate(self, encoder, data, around) -> Evaluation:
        def features(split):
            images = torch.from_numpy(np.stack([split.image(i) for i in range(len(split))]))
            images = nn.functional.interpolate(images.permute(0, 3, 1, 2).float(), encoder.image_size) / 255
            return encoder.readouts(images, [Readout()])[Readout()].numpy()

        train, labels = features(data.train), data.train.labels
        means = np.stack([train[labels == c].mean(0) for c in range(len(data.classes))])
        test = data.open_test()
        distance = ((features(test)[:, None] - means) ** 2).sum(-1)
        hits = distance.argmin(1) == test.labels
        return Evaluation({"top1": float(hits.mean())}, Hits(hits), {"candidates": [], "chosen": None})


class _Stripes(Part):
    """Lying (0) and standing (1) stripes of random phase and contrast."""

    identity = "stripes"

    def __init__(self, n: int):
        self.labels = np.arange(n, dtype=np.int64) % 2

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return f"stripe {index}"

    def encoded(self, index: int) -> bytes:
        draw = np.random.default_rng(index)
        phase, contrast = draw.integers(4), draw.integers(40, 120)
        line = 128 + contrast * np.where((np.arange(16) + phase) % 4 < 2, 1, -1)
        image = np.broadcast_to(line[:, None], (16, 16))
        return (image if self.labels[index] == 0 else image.T).astype(np.uint8).tobytes()

    def inspect(self, content: bytes) -> tuple[int, int]:
        return 16, 16

    def decode(self, content: bytes) -> np.ndarray:
        return np.repeat(np.frombuffer(content, np.uint8).reshape(16, 16, 1), 3, axis=2)


def stripes(argument: str = "") -> Listing:
    """``stripes:N``: N images of stripes."""
    return Listing(
        name=f"stripes:{argument}",
        parts={"train": _Stripes(int(argument or 200))},
        classes=("lying", "standing"),
        defaults=DataDefaults(image_size=16, backbone="patchwise_4", crop_pct=1.0, flip=False),
    )


class _Patchwise(nn.Module):
    """Each patch through one small network of its own."""

    def __init__(self, name: str, image_size: int, drop_path: float = 0.0):
        super().__init__()
        patch = int(name.rpartition("_")[2])
        self.config = {"name": name, "image_size": image_size, "cls_token": False}
        self.embed_dim, self.depth = 16, 1
        self.grid = (image_size // patch, image_size // patch)
        self.embed = nn.Conv2d(3, 16, patch, patch)
        self.mix = nn.Sequential(nn.Linear(16, 16), nn.GELU())
        self.norm = nn.LayerNorm(16)

    def encode(
        self,
        images: Tensor,
        mask: Tensor | None = None,
        fill: str = "drop",
        layers: Sequence[int] = (),
        attention: bool = False,
    ) -> Encoded:
        tokens = self.mix(self.embed(images).flatten(2).transpose(1, 2))
        return Encoded(None, self.norm(tokens), None, tuple((None, tokens) for _ in layers), None)

    def final_norm(self, tokens: Tensor) -> Tensor:
        return self.norm(tokens)


def patchwise(name: str, image_size: int, **options: Any) -> nn.Module:
    """Builds ``patchwise_P`` with patches of P pixels; what it does not know of ``options`` it ignores."""
    return _Patchwise(name, image_size, options.get("drop_path", 0.0))
