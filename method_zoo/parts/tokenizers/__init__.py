"""Tokenizers: images to one discrete token a patch, for methods that predict tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from method_zoo.parts.tokenizers import dalle, vqgan
from mimbench import registry
from mimbench.checkpoint import load_state, read_weights
from mimbench.errors import UserError
from mimbench.method import Tokenizer

PRODUCT = "tokenizer.safetensors"  # of a tokenizer job
# OpenAI's dVAE and MaskGIT's VQGAN, by what names them where methods are named by their keys.
OFFICIAL: dict[str, type[dalle.DalleEncoder | vqgan.VQGAN]] = {
    "dalle": dalle.DalleEncoder,
    "vqgan": vqgan.VQGAN,
}


@torch.no_grad()
def token_ids(tokenizer: Tokenizer, images: Tensor, grid: tuple[int, int]) -> Tensor:
    """Target tokens on ``grid`` in raster order, int64 [B, N]. images: float [B, 3, S, S] in [0, 1].

    In the images' own precision: which code is nearest must not depend on the one the encoder trains in.
    """
    with torch.autocast(images.device.type, enabled=False):
        return tokenizer.ids(images, grid).flatten(1)


def load_tokenizer(path: Path | str) -> nn.Module:
    """A frozen tokenizer (``mimbench.method.Tokenizer``) from a file.

    path: a ``tokenizer.safetensors`` that mimbench wrote, or the folder it lies in; or the encoder of
    OpenAI's dVAE, as the published ``encoder.pkl`` or as a state dict (safetensors or PyTorch); or a state
    dict of MaskGIT's VQGAN in MAGE's layout.

    A tokenizer of ours is rebuilt by the ``from_config`` of the method that the file names, from the
    ``config`` it had. No file runs code. Raises UserError for anything else than a tokenizer.
    """
    path = Path(path)
    if path.is_dir():
        path = path / PRODUCT
    if not path.is_file():
        raise UserError(f"no tokenizer file at {path}; check the path")
    if path.suffix != ".safetensors":
        tokenizer = _published(dalle.read_state(path), str(path))
    else:
        state, metadata = read_weights(path)
        if metadata:
            tokenizer = _ours(metadata, path)
            load_state(tokenizer, state, str(path))
        else:
            tokenizer = _published(state, str(path))
    return tokenizer.requires_grad_(False).eval()


def _published(state: Mapping[str, Tensor], source: str) -> nn.Module:
    return vqgan.from_state(state, source) if vqgan.is_state(state) else dalle.from_state(state, source)


def _ours(metadata: Mapping[str, Any], path: Path) -> nn.Module:
    """The freshly built tokenizer that a file of ours names."""
    try:
        return build_tokenizer(metadata)
    except (KeyError, TypeError, ValueError) as error:
        key = metadata.get("method")
        raise UserError(
            f"{path} does not say how the tokenizer {key} was built ({error!r}); train it again"
        ) from error


def describe(tokenizer: Tokenizer) -> dict[str, Any]:
    """What ``build_tokenizer`` rebuilds a tokenizer from, without its weights: JSON data."""
    for key, cls in OFFICIAL.items():
        if isinstance(tokenizer, cls):
            return {"method": key, "config": tokenizer.config}
    card, config = getattr(tokenizer, "card", None), getattr(tokenizer, "config", None)
    if card is None or config is None:
        raise TypeError(f"{type(tokenizer).__name__} does not say how it was built (card and config)")
    return {"method": card.key, "config": config}


def build_tokenizer(description: Mapping[str, Any]) -> nn.Module:
    """A freshly initialised tokenizer as ``describe`` described it; UserError for what is no tokenizer."""
    key = str(description.get("method"))
    if key in OFFICIAL:
        return OFFICIAL[key](**description["config"])
    cls = registry.find_method(key)
    if cls.card.role != "tokenizer":
        raise UserError(f"{key} is no tokenizer; give the {PRODUCT} of a tokenizer job")
    return cls.from_config(description["config"])
