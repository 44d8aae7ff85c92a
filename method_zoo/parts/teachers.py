"""Frozen encoders that give targets: of ours, of timm, or out of a file.

A teacher's patches lie on the student's grid: images are resized so that they do.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mimbench.torchvision_compat  # noqa: F401  isort: skip
import timm
import torch
from torch import Tensor, nn

from method_zoo.backbones.blocks import query_key_value
from method_zoo.backbones.timm_vit import PREFIX, TimmViT, create
from method_zoo.parts.images import resize_to
from mimbench.checkpoint import encoder_of, read_weights, save_weights
from mimbench.data.cache import cache_folder
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

    path: an ``encoder.safetensors`` of ours, the folder it lies in, or what ``fetch_timm`` keeps.
    Raises UserError for a file of anything else and for weights that do not fit the grid.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "encoder.safetensors"
    state, metadata = read_weights(path)
    if "timm" in metadata:
        model = create(metadata["timm"])
        size = grid[0] * model.patch_embed.patch_size[0]
        backbone = TimmViT(name=PREFIX + metadata["timm"], image_size=size, weights=str(path))
        facts = timm.data.resolve_model_data_config(backbone.model)
        return FrozenTeacher(backbone, facts["mean"], facts["std"], grid)
    backbone = encoder_of(state, metadata, path).backbone
    _check_transformer(backbone, str(path))
    return FrozenTeacher(backbone, metadata["mean"], metadata["std"], grid)


def as_teacher(method: Method) -> FrozenTeacher:
    """The encoder of a method at hand as a teacher, on its own grid."""
    _check_transformer(method.product, method.card.key)
    return FrozenTeacher(method.product, method.card.mean, method.card.std, method.encoder.grid)


def _check_transformer(backbone: nn.Module, source: str) -> None:
    if not hasattr(backbone, "blocks"):
        raise UserError(f"the encoder of {source} is no transformer and cannot teach; name another teacher")


def fetch_timm(name: str) -> Path:
    """The weights that timm has for ``name``, fetched once into the cache: a file for ``load_teacher``.

    Raises UserError where timm does not know the model, has no weights for it or cannot fetch them.
    """
    path = cache_folder("teachers") / f"{name.replace('/', '_')}.safetensors"
    if not path.is_file():
        create(name)  # says what is wrong with the name before anything is fetched
        keep_timm(name, path, _fetched(name))
    return path


def keep_timm(name: str, path: Path, model: nn.Module) -> None:
    """Write a model of timm to a file for ``load_teacher``."""
    save_weights(path, model, {"timm": name})


def _fetched(name: str) -> nn.Module:
    facts: Any = timm.get_pretrained_cfg(name)
    if facts is None or not facts.has_weights:
        raise UserError(f"timm has no weights for {name}; name a pre-trained one, such as {name}.<tag>")
    try:
        return create(name, pretrained=True)
    except (OSError, RuntimeError) as error:  # of the hub's client: no network, no such file
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"cannot fetch timm's {name} ({reason}); check the network, or give the file as file:PATH"
        ) from error
