"""Frozen encoders that give targets: a method at hand, or out of a file of ours.

A teacher's patches lie on the student's grid: images are resized so that they do.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from method_zoo.backbones.blocks import query_key_value
from method_zoo.parts.images import resize_to
from mimbench.checkpoint import ENCODER_FILE, load_encoder
from mimbench.encoder import Encoded
from mimbench.errors import UserError
from mimbench.method import Method


class FrozenTeacher(nn.Module):
    """An encoder as a ``mimbench.method.Teacher``: without gradients, always in eval mode.

    backbone: on images whose patches lie on ``grid``. mean, std: of the images it was trained on.
    """

    def __init__(
        self, backbone: nn.Module, mean: Sequence[float], std: Sequence[float], grid: tuple[int, int]
    ):
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.grid = grid
        self.embed_dim, self.depth = int(backbone.embed_dim), int(backbone.depth)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        super().train(False)

    def train(self, mode: bool = True) -> FrozenTeacher:
        """Stays in eval mode: dropout would make targets drift."""
        return self

    @property
    def num_heads(self) -> int:
        return int(self.backbone.num_heads)

    @torch.no_grad()
    def encode(self, images: Tensor, layers: Sequence[int] = (), attention: bool = False) -> Encoded:
        """Tokens of whole images, float [B, 3, S, S] in [0, 1]; see ``mimbench.encoder.Backbone.encode``."""
        images = resize_to(images, self.grid, self.backbone.patch_size)
        return self.backbone.encode((images - self.mean) / self.std, layers=layers, attention=attention)

    @torch.no_grad()
    def query_key_value(self, layer: int, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [B, heads, T, D / heads] of block ``layer`` on its input [B, T, D]."""
        return query_key_value(self.backbone.blocks[layer], tokens)


def load_teacher(path: Path | str, grid: tuple[int, int]) -> FrozenTeacher:
    """The teacher in a file, for a student with patches on ``grid``.

    path: an ``encoder.safetensors`` of ours, as pre-training and conversion write it, or the folder it lies
    in. An encoder for images of another number of patches is brought to the student's grid.
    Raises UserError for a file of anything else, and for an encoder that does not come to the grid.
    """
    path = Path(path)
    if path.is_dir():
        path = path / ENCODER_FILE
    encoder = load_encoder(path)
    backbone = encoder.backbone
    _check_transformer(backbone, str(path))
    if backbone.grid != grid:
        backbone = backbone.rebuilt(image_size=grid[0] * backbone.patch_size)
    return FrozenTeacher(backbone, encoder.mean.flatten().tolist(), encoder.std.flatten().tolist(), grid)


def as_teacher(method: Method) -> FrozenTeacher:
    """The encoder of a method at hand as a teacher, on its own grid."""
    _check_transformer(method.product, method.card.key)
    return FrozenTeacher(method.product, method.card.mean, method.card.std, method.encoder.grid)


def _check_transformer(backbone: nn.Module, source: str) -> None:
    if not hasattr(backbone, "blocks"):
        raise UserError(f"the encoder of {source} is no transformer and cannot teach; name another teacher")
