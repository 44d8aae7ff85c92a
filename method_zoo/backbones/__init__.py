"""Backbones by name: ``vit_{micro,tiny,…,giant}_patch{P}``, pyramids, ``pixels``, timm's as ``timm:NAME``."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from method_zoo.backbones import convmae, hivit, mixmim
from method_zoo.backbones.global_rope_vit import GlobalRopeViT
from method_zoo.backbones.pixels import Pixels
from method_zoo.backbones.post_norm_vit import PostNormViT
from method_zoo.backbones.register_vit import RegisterViT
from method_zoo.backbones.rope_vit import RopeViT
from method_zoo.backbones.timm_features import TimmFeatures
from method_zoo.backbones.timm_models import PREFIX, create, is_plain
from method_zoo.backbones.timm_vit import TimmViT
from method_zoo.backbones.token_vit import TokenViT
from method_zoo.backbones.transformer import check_image_size
from method_zoo.backbones.vit import ViT
from mimbench.errors import UserError, unknown

SIZES: dict[str, dict[str, int]] = {
    "micro": {"embed_dim": 64, "depth": 4, "num_heads": 2},  # for images of a few hundred pixels
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},  # DeiT (arXiv:2012.12877), as small
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},  # ViT (arXiv:2010.11929), as large
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16},
    "giant": {"embed_dim": 1408, "depth": 40, "num_heads": 16},  # ViT-g (arXiv:2106.04560)
}
# Pyramids, whose sizes have names of their own: class and sizes.
PYRAMIDS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    name: (cls, sizes)
    for cls, table in (
        (convmae.ConvMAE, convmae.SIZES),
        (hivit.HiViT, hivit.SIZES),
        (mixmim.MixMIM, mixmim.SIZES),
    )
    for name, sizes in table.items()
}
# A regular expression of all that is built here.
NAMES = rf"pixels|timm:.+|{'|'.join(PYRAMIDS)}|vit_({'|'.join(SIZES)})_patch[1-9]\d*"


def build(name: str, image_size: int, **options: Any) -> nn.Module:
    """A freshly initialised backbone for square images of ``image_size`` pixels.

    ``options`` are the keyword arguments of the backbone's class. The result's ``config`` holds all of
    them, so that ``build(**config)`` rebuilds it. A ViT with the option ``tokenizer`` reads an image's
    tokens instead of its pixels (``TokenViT``); one with ``positions="rope"`` is CAPI's (``RopeViT``, with a
    ``cls_token`` of the predictor's ``GlobalRopeViT``), one with ``registers``, ``mlp`` or
    ``interpolate_antialias`` DINOv2's (``RegisterViT``), one with ``norm_order="post"`` data2vec 2.0's
    (``PostNormViT``).
    ``timm:NAME`` is a model of timm for whole images, to hold released weights: a plain vision transformer
    (``TimmViT``) or any other that gives a map of features (``TimmFeatures``).

    Raises UnknownNameError for an unknown name, UserError for patches that do not tile the image.
    """
    if name.startswith(PREFIX):
        return _of_timm(name, image_size, **options)
    if name == "pixels":
        return Pixels(name=name, image_size=image_size, **options)
    if name in PYRAMIDS:
        return _pyramid(name, image_size, **options)
    match = re.fullmatch(r"vit_([a-z]+)_patch([1-9]\d*)", name)
    if match is None or match[1] not in SIZES:
        patch = match[2] if match else "16"
        known = [*(f"vit_{size}_patch{patch}" for size in SIZES), *PYRAMIDS, "pixels"]
        raise unknown("backbone", name, known)
    size, patch_size = SIZES[match[1]], int(match[2])
    check_image_size(name, patch_size, image_size)
    cls: type[nn.Module] = TokenViT if "tokenizer" in options else ViT
    if options.get("positions") == "rope":
        cls = GlobalRopeViT if "cls_token" in options else RopeViT
    elif options.keys() & {"registers", "mlp", "interpolate_antialias"}:
        cls = RegisterViT
    elif "norm_order" in options:
        cls = PostNormViT
    return cls(name=name, image_size=image_size, patch_size=patch_size, **{**size, **options})


def _pyramid(name: str, image_size: int, **options: Any) -> nn.Module:
    """One of ``PYRAMIDS``, see ``build``."""
    cls, sizes = PYRAMIDS[name]
    if match := re.search(r"_patch(\d+)$", name):
        check_image_size(name, int(match[1]), image_size)
        sizes = {"patch_size": int(match[1]), **sizes}
    return cls(name=name, image_size=image_size, **{**sizes, **options})


def _of_timm(name: str, image_size: int, **options: Any) -> nn.Module:
    strange = sorted(options.keys() - {"model_args", "final_norm", "drop_path", "cls_token"})
    if strange:
        raise UserError(
            f"{name} holds weights of timm and takes whole images, so nothing is pre-trained on it (it has "
            f"no {', '.join(strange)}); name a backbone such as vit_base_patch16"
        )
    with torch.device("meta"):
        plain = is_plain(create(name, options.get("model_args"), img_size=image_size))
    cls: type[nn.Module] = TimmViT if plain else TimmFeatures
    return cls(name=name, image_size=image_size, **options)
