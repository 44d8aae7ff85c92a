"""Any method of the registry, small: 16-pixel digits, patches of 4, two blocks of width 32."""

from __future__ import annotations

import inspect
from copy import deepcopy
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from method_zoo.parts.teachers import FrozenTeacher, as_teacher
from mimbench import registry, rng, settings
from mimbench.data.transforms import TrainTransform
from mimbench.method import Crop, Losses, Method, Step
from mimbench.seeding import seeded_init
from mimbench.spec import Augmentation

IMAGE_SIZE, PATCH_SIZE, CLASSES = 16, 4, 10
TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2}


def build(
    key: str, *, seed: int = 0, patch_size: int = PATCH_SIZE, drop_path: float = 0.0, **given: Any
) -> Method:
    """A method with freshly drawn weights; what the harness provides (classes, tokenizer) comes along.

    given: settings; UserError where one is not allowed, as on the command line.
    """
    cls = registry.find_method(key)
    parsed = settings.arguments(cls, settings.parse_settings(key, cls, given))
    asked = inspect.signature(cls.__init__).parameters
    provided: dict[str, Any] = {}
    if "num_classes" in asked:
        provided["num_classes"] = CLASSES
    for name, default in cls.needs.items():
        if default is not None:
            make = trained_tokenizer if name.endswith("tokenizer") else trained_teacher
            provided[name] = deepcopy(make(default, patch_size))
    with seeded_init(seed):
        options = {**cls.backbone_options(parsed), **TINY, "drop_path": drop_path}
        backbone = registry.build_backbone(f"vit_micro_patch{patch_size}", IMAGE_SIZE, **options)
        return cls(backbone, **parsed, **provided)


@cache
def trained_tokenizer(key: str, patch_size: int) -> Method:
    """A tokenizer after a few steps: before, nearly all patches get the same token."""
    return _trained(key, patch_size)


@cache
def trained_teacher(key: str, patch_size: int) -> FrozenTeacher:
    """A method's encoder after a few steps, as other methods get it."""
    return as_teacher(_trained(key, patch_size))


def _trained(key: str, patch_size: int) -> Method:
    method = build(key, patch_size=patch_size)
    optimizer = optimiser(method)
    images, step = batch(method, n=64)
    for _ in range(10):
        train(method, optimizer, images, step)
    return method


@cache
def digits(start: int, n: int) -> tuple[Tensor, Tensor]:
    """``n`` handwritten digits from the ``start``-th on: float [n, 3, 16, 16] in [0, 1], and labels."""
    bunch = load_digits()
    images = torch.tensor(bunch.images[start : start + n] / 16, dtype=torch.float32)
    images = F.interpolate(images[:, None], (IMAGE_SIZE, IMAGE_SIZE), mode="bicubic").clamp(0, 1)
    return images.expand(-1, 3, -1, -1).contiguous(), torch.tensor(bunch.target[start : start + n])


def normalised(method: Method, images: Tensor) -> Tensor:
    """Images in [0, 1] as the training loop hands them to ``method``."""
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (method.card.mean, method.card.std))
    return (images - mean) / std


def batch(method: Method, n: int = 8, start: int = 0, progress: float = 0.6) -> tuple[Tensor, Step]:
    """Digits as the training loop hands them over."""
    images, labels = digits(start, n)
    keys = torch.from_numpy(rng.sample_keys(0, 0, torch.arange(start, start + n).numpy()))
    views = crops(method, images, keys)
    images = views[0].images if views else normalised(method, images)
    return images, Step(progress, keys, labels if takes_labels(method) else None, views)


def crops(method: Method, images: Tensor, keys: Tensor) -> tuple[Crop, ...]:
    """The views a method asks for; the first crop is most of the image and leaves room to shift another."""
    if not method.views:
        return ()
    most = Augmentation(crop_scale=(0.75, 0.75), crop_ratio=(1, 1), flip=False)
    transform = TrainTransform(most, IMAGE_SIZE, method.views)
    pixels = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    cuts = [transform.cuts(one, int(key)) for one, key in zip(pixels, keys, strict=True)]
    return tuple(
        Crop(
            normalised(method, torch.stack([cut.image for cut in view]) / 255),
            torch.tensor([cut.box for cut in view]) / IMAGE_SIZE,
            torch.tensor([cut.flipped for cut in view]),
        )
        for view in zip(*cuts, strict=True)
    )


def takes_labels(method: Method) -> bool:
    return method.card.external == "labels"


def rows(images: Tensor, step: Step, which: slice | Tensor) -> tuple[Tensor, Step]:
    """Some of a batch's images with what belongs to them."""
    labels = None if step.labels is None else step.labels[which]
    views = tuple(Crop(*(part[which] for part in view)) for view in step.views)
    return images[which], Step(step.progress, step.keys[which], labels, views)


def double(images: Tensor, step: Step) -> tuple[Tensor, Step]:
    """A batch in float64, for comparisons in which rounding is to count for nothing."""
    views = tuple(Crop(c.images.double(), c.boxes.double(), c.flipped) for c in step.views)
    return images.double(), replace(step, views=views)


def optimiser(method: Method, lr: float = 2e-3) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=lr)


def train(method: Method, optimizer: torch.optim.Optimizer, images: Tensor, step: Step) -> Losses:
    """One optimiser step, as the harness takes it; the losses before it."""
    losses = method(images, step)
    optimizer.zero_grad(set_to_none=True)
    losses.total.backward()
    optimizer.step()
    method.after_step(step)
    return Losses({name: loss.detach() for name, loss in losses.items()})


def parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    return dict(module.named_parameters())
