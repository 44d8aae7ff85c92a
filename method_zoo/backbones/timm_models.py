"""timm's models by name, and how one lays out what it gives: channels, grid, class token, last norm."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import mimbench.torchvision_compat  # noqa: F401  isort: skip
import timm
import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mimbench.errors import UserError

PREFIX = "timm:"
NORMS = ("norm", "fc_norm", "head.norm", "norm_head", "norm_pre")  # where timm's models keep their last norm
HEADS = (
    "head",
    "head_dist",
    "fc",
    "fc_norm",
    "attn_pool",
    "classifier",
    "last_linear",
    "conv_head",
    "norm_head",
)


def create(name: str, model_args: Mapping[str, Any] | None = None, **options: Any) -> nn.Module:
    """timm's model ``name`` (with or without ``timm:``) without a classifier, weights untrained.

    model_args: of the model's class, beside those that the name stands for. options: as model_args, for what
    only some classes take: what one does not take is left out. Raises UserError where timm does not know
    the name, and where it cannot be built so.
    """
    name = name.removeprefix(PREFIX)
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        near = timm.list_models(f"*{architecture[:12]}*")[:3]
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise UserError(f"timm has no model {name!r}{hint}")
    asked = dict(model_args or {})
    try:
        with torch.device("meta"):
            cls = type(timm.create_model(architecture, num_classes=0, **asked))
        fitting = {k: v for k, v in options.items() if k in accepted(cls)}
        return timm.create_model(architecture, num_classes=0, **{**asked, **fitting})
    except (TypeError, ValueError, LookupError, AssertionError, RuntimeError) as error:
        raise UserError(f"timm cannot build {name} with {asked | options}: {_said(error)}") from error


def accepted(cls: type[nn.Module]) -> set[str]:
    """What a class of timm's takes."""
    return set(inspect.signature(cls.__init__).parameters)


def _said(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def is_plain(model: nn.Module) -> bool:
    """Whether a model is a vision transformer of patches whose blocks can be run one by one."""
    if not isinstance(model, VisionTransformer) or not isinstance(model.patch_embed, PatchEmbed):
        return False
    attention = getattr(model.blocks[0], "attn", model.blocks[0])  # fused with an MLP in some
    return hasattr(attention, "num_heads")


@dataclass(frozen=True)
class Layout:
    """What a model's ``forward_features`` gives for square images of one size.

    form: of the tensor. leading: tokens before the patches. norm: the dotted name of its last norm, "" where
    it has none. inside: whether ``forward_features`` ends with it; otherwise it is the head's, after pooling.
    channels_first: whether the norm takes channels in the second dimension. levels: how many of the features
    that timm tells apart, counted from the last, are alike in size and width.
    unused: modules of the head, which features do without.
    """

    form: Literal["NLC", "NHWC", "NCHW"]
    grid: tuple[int, int]
    width: int
    leading: int
    norm: str
    inside: bool
    channels_first: bool
    levels: int
    unused: tuple[str, ...]


def layout(name: str, model_args: Mapping[str, Any], image_size: int) -> Layout:
    """The layout of timm's model ``name``, found out on a model without storage.

    Raises UserError for a model that takes no images of that size and for one that gives no map.
    """
    with torch.device("meta"):
        model = create(name, model_args, img_size=image_size).eval()
        images = torch.zeros(1, 3, image_size, image_size)
        try:
            with torch.no_grad():
                return _layout(model, images)
        # Each of timm's models says in its own way that it takes no such images or gives no such features.
        except (AssertionError, RuntimeError, ValueError, AttributeError, NotImplementedError) as error:
            raise UserError(
                f"timm's {name.removeprefix(PREFIX)} gives no map of images of {image_size} pixels: "
                f"{_said(error)}; take another size or another model"
            ) from error


def _layout(model: nn.Module, images: Tensor) -> Layout:
    called: dict[str, tuple[Tensor, Any]] = {}
    with _watched(model, called):
        features = model.forward_features(images)
        during = dict(called)
        norm = next((name for name, (_, out) in during.items() if out is features and name in NORMS), "")
        raw = during[norm][0] if norm else features
        if not isinstance(raw, Tensor) or raw.ndim not in (3, 4):
            raise ValueError("its features are no single map")
        if not norm and hasattr(model, "forward_head"):
            model.forward_head(features, pre_logits=True)
            norm = next((name for name in NORMS if name in called and name not in during), "")
    maps = model.forward_intermediates(images, output_fmt="NCHW", intermediates_only=True)
    sizes = [tuple(taken[0].shape[1:] if isinstance(taken, tuple) else taken.shape[1:]) for taken in maps]
    rows, columns = sizes[-1][1:]
    if raw.ndim == 3:
        form, width, leading = "NLC", raw.shape[2], raw.shape[1] - rows * columns
    else:
        last = tuple(raw.shape[1:3]) == (rows, columns) and raw.shape[1:] != sizes[-1]
        form, width, leading = ("NHWC", raw.shape[3], 0) if last else ("NCHW", raw.shape[1], 0)
        rows, columns = raw.shape[1:3] if last else raw.shape[2:]
    if leading < 0:
        raise ValueError("its features are fewer than its patches")
    alike, whole = 0, {True: len(sizes), False: 1}[not leading or _gives_leading(model)]
    while alike < whole and sizes[-1 - alike] == (width, rows, columns):
        alike += 1
    return Layout(
        form=form,  # type: ignore[arg-type]
        grid=(rows, columns),
        width=width,
        leading=leading,
        norm=norm,
        inside=norm in during,
        channels_first=bool(norm) and called[norm][0].ndim == 4 and (form == "NCHW" or norm not in during),
        levels=max(alike, 1),
        unused=tuple(name for name in HEADS if _has(model, name) and name not in during),
    )


def _gives_leading(model: nn.Module) -> bool:
    """Whether a model's class tokens can be had of each block, too."""
    return "return_prefix_tokens" in inspect.signature(model.forward_intermediates).parameters


def _has(model: nn.Module, name: str) -> bool:
    part = getattr(model, name, None)
    return isinstance(part, nn.Module) and any(True for _ in part.parameters())


@contextmanager
def _watched(model: nn.Module, called: dict[str, tuple[Tensor, Any]]) -> Iterator[None]:
    """Note input and output of the norms and heads of a model that are called, the last call of each."""
    modules = dict(model.named_modules())
    found = [(name, modules[name]) for name in dict.fromkeys((*NORMS, *HEADS)) if name in modules]

    def note(name: str) -> Any:
        return lambda module, args, out: called.__setitem__(name, (args[0], out))

    handles = [
        module.register_forward_hook(note(name))
        for name, module in found
        if any(True for _ in module.parameters())
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def detach(model: nn.Module, name: str) -> nn.Module:
    """The module ``name`` of a model, whose place is taken by nothing."""
    parent, _, own = name.rpartition(".")
    owner = model.get_submodule(parent) if parent else model
    found: nn.Module = getattr(owner, own)
    setattr(owner, own, nn.Identity())
    return found
