"""Whether weights are what they are said to be: what the tokens of two photographs look like.

A conversion that maps every name can still be wrong (two tensors of one shape swapped, a scale forgotten),
and a file can hold weights that were never trained. Figures beside those of the same encoder with random
weights show that at a glance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_sample_image
from torch import Tensor
from torch.nn import functional as F

from mimbench.encoder import Encoder
from mimbench.errors import UserError
from mimbench.geometry import effective_rank, linear_cka
from mimbench.registry import build_backbone
from mimbench.seeding import seeded_init
from mimbench.spec import Readout

PHOTOGRAPHS = ("china.jpg", "flower.jpg")  # the two that scikit-learn ships
CROPS = 6  # of each photograph
TOKENS = 2048  # of all crops that ranks and alikeness are computed of
# Bounds far below what any sound encoder shows: masked-image models have tokens of cosine 0.99 that still
# tell places apart.
LEAST_VARIANCE = 1e-4
LEAST_RANK = 2.0


class Seen(NamedTuple):
    """What an encoder gives for the photographs."""

    patches: Tensor  # [B, N, D], through the final norm
    features: Tensor  # [B, D], as its authors read them off


@dataclass(frozen=True)
class Figures:
    """Of an encoder on crops of two photographs.

    place_variance: squared distance of an image's patch tokens, at length one, from their mean; 0 where all
    places look alike. image_variance: the same of features, over images. token_rank: RankMe
    (arXiv:2210.02885) of centred patch tokens. norm_mean, norm_max: of the tokens' lengths; a few very long
    ones are registers that a ViT made itself (arXiv:2309.16588).
    """

    place_variance: float
    image_variance: float
    token_rank: float
    norm_mean: float
    norm_max: float


@dataclass(frozen=True)
class Audit:
    """What an encoder's tokens say of its weights.

    own, random: of the weights, and of the same encoder as it would be initialised. alike: linear CKA
    (arXiv:1905.00414) between the tokens of both, 1 where one is the other turned and scaled. by_chance: the
    same between two random draws; what was trained for long lies well below it. constant: matrices all of
    whose values are equal. flags: sentences on what is wrong.
    """

    own: Figures
    random: Figures
    alike: float
    by_chance: float
    constant: tuple[str, ...]
    flags: tuple[str, ...]

    def content(self) -> dict[str, Any]:
        """As JSON data, for a record."""
        return asdict(self)


def photographs(size: int) -> Tensor:
    """Crops of two photographs, float [2 * CROPS, 3, size, size] in [0, 1]; always the same."""
    draw = np.random.default_rng(0)
    crops = []
    for name in PHOTOGRAPHS:
        image = torch.from_numpy(load_sample_image(name).copy()).permute(2, 0, 1).float() / 255
        height, width = image.shape[1:]
        for _ in range(CROPS):
            side = int(draw.integers(160, height + 1))
            top, left = int(draw.integers(0, height - side + 1)), int(draw.integers(0, width - side + 1))
            crop = image[None, :, top : top + side, left : left + side]
            crops.append(F.interpolate(crop, (size, size), mode="bicubic", antialias=True).clamp(0, 1))
    return torch.cat(crops)


def look(encoder: Encoder, readout: Readout) -> Seen:
    """Tokens and features of the photographs, float32 on the CPU. UserError where they are not finite."""
    patches, features = [], []
    for images in photographs(encoder.image_size).to(encoder.mean.device).split(4):
        patches.append(encoder(images).patches.flatten(1, 2).float().cpu())
        parts = encoder.readouts(images, readout.parts)
        features.append(torch.cat([parts[part] for part in readout.parts], dim=1).float().cpu())
    seen = Seen(torch.cat(patches), torch.cat(features))
    if not all(torch.isfinite(part).all() for part in seen):
        raise UserError(
            f"this encoder ({encoder.backbone.config['name']}) gives tokens of photographs that are not "
            "finite numbers; its weights are not usable"
        )
    return seen


def audit(encoder: Encoder, readout: Readout) -> Audit:
    """Look at an encoder, and at two draws of the same one untrained."""
    own = look(encoder, readout)
    first, second = (look(_redrawn(encoder, seed), readout) for seed in (0, 1))
    parameters = dict(encoder.backbone.named_parameters())
    constant = {name for name, p in parameters.items() if p.numel() > 1 and p.min() == p.max()}
    gains = {name for name, p in parameters.items() if p.ndim == 1 and name.endswith("weight")}
    flags = []
    if gains and gains <= constant:
        flags.append("the gains of all norms are as they are initialised: these weights were never trained")
    figures = _figures(own)
    return Audit(
        own=figures,
        random=_figures(first),
        alike=linear_cka(_some(own.patches), _some(first.patches)),
        by_chance=linear_cka(_some(second.patches), _some(first.patches)),
        constant=tuple(sorted(name for name in constant if parameters[name].ndim > 1)),
        flags=(*flags, *_collapsed(figures, own.patches.shape[-1])),
    )


def _redrawn(encoder: Encoder, seed: int) -> Encoder:
    mean, std = (values.flatten().tolist() for values in (encoder.mean, encoder.std))
    return untrained(encoder.backbone.config, mean, std, seed).to(encoder.mean.device)


def untrained(config: Mapping[str, Any], mean: Sequence[float], std: Sequence[float], seed: int) -> Encoder:
    """The encoder of a backbone's ``config`` as it would be initialised."""
    with seeded_init(seed):
        backbone = build_backbone(**config)
    return Encoder(backbone, mean, std)


def _collapsed(figures: Figures, width: int) -> list[str]:
    """Sentences on tokens or features that are all alike."""
    flags = []
    if figures.place_variance < LEAST_VARIANCE:
        flags.append(f"all places of an image give one token (variance {figures.place_variance:.1g})")
    if figures.image_variance < LEAST_VARIANCE:
        flags.append(f"all images give one feature (variance {figures.image_variance:.1g})")
    if figures.token_rank < LEAST_RANK:
        flags.append(f"tokens fill {figures.token_rank:.1f} directions of {width}")
    return flags


def _some(patches: Tensor) -> Tensor:
    """Tokens [n, D] of all images, evenly spread, at most ``TOKENS``."""
    flat = patches.flatten(0, 1)
    return flat[:: -(-len(flat) // TOKENS)]


def _figures(seen: Seen) -> Figures:
    unit = F.normalize(seen.patches.double(), dim=-1)
    features = F.normalize(seen.features.double(), dim=-1)
    norms = seen.patches.double().norm(dim=-1)
    tokens = _some(seen.patches).double()
    return Figures(
        place_variance=float((unit - unit.mean(1, keepdim=True)).square().sum(-1).mean()),
        image_variance=float((features - features.mean(0)).square().sum(-1).mean()),
        token_rank=effective_rank(tokens - tokens.mean(0)),
        norm_mean=float(norms.mean()),
        norm_max=float(norms.max()),
    )
