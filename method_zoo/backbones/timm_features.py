"""Any model of timm that gives a map of features, as a backbone: Swin, ConvNeXt, ResNet, Hiera, BEiT, EVA."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any

import mimbench.torchvision_compat  # noqa: F401  isort: skip
import timm
import torch
from timm.layers import DropPath, resample_abs_pos_embed
from torch import Tensor, nn

from method_zoo.backbones.timm_models import PREFIX, accepted, create, detach, layout
from method_zoo.backbones.transformer import check_images, check_layers
from mimbench import rng
from mimbench.encoder import Encoded
from mimbench.errors import UserError


class KeyedDropPath(nn.Module):
    """timm's drop path (arXiv:1603.09382) whose draws depend on each image's key."""

    def __init__(self, original: DropPath, number: int):
        super().__init__()
        self.drop_prob, self.scale_by_keep, self.number = original.drop_prob, original.scale_by_keep, number
        self.keys: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, ...], an image in each row."""
        if not self.training or not self.drop_prob:
            return x
        if self.keys is None or len(self.keys) != len(x):
            draws = torch.rand(len(x), device=x.device)
        else:
            draws = rng.uniform(self.keys, 1, f"drop path {self.number}")[:, 0]
        kept = (draws >= self.drop_prob).to(x.dtype)
        if self.scale_by_keep:
            kept = kept / (1 - self.drop_prob)
        return x * kept.view(-1, *[1] * (x.ndim - 1))


class TimmFeatures(nn.Module):
    """A model of timm as a backbone, through timm's public methods, for whole images only.

    ``model`` is timm's own without its last norm, which is ``norm``, and without its head. Where timm has the
    last norm in the head, after pooling (ConvNeXt, Hiera, BEiT), it is applied to each token here.

    ``depth`` counts the layers that can be asked for: the blocks of a model whose blocks are all of one
    resolution (BEiT, EVA, XCiT); of a pyramid (Swin, ConvNeXt, ResNet, Hiera) the stages of the last
    resolution, which is one, and ``grid`` and ``patch_size`` are that stage's.

    name: "timm:" and timm's name. image_size: in pixels. model_args: of timm's class, beside those the name
    stands for. final_norm: False for weights whose last norm was not trained. drop_path: rate at the last
    block, growing as timm has it. cls_token: whether there is one, which the name decides; noted only.
    """

    takes_mask = False

    def __init__(
        self,
        *,
        name: str,
        image_size: int,
        model_args: Mapping[str, Any] | None = None,
        final_norm: bool = True,
        drop_path: float = 0.0,
        cls_token: bool | None = None,
    ):
        super().__init__()
        args = dict(model_args or {})
        self.layout = found = layout(name, args, image_size)
        model = create(
            name, {**args, **({"drop_path_rate": drop_path} if drop_path else {})}, img_size=image_size
        )
        last = detach(model, found.norm) if found.norm else nn.Identity()
        self.norm = last if final_norm else nn.Identity()
        for unused in found.unused:
            detach(model, unused)
        self.model = model
        self.image_size, self.grid = image_size, found.grid
        self.embed_dim, self.depth, self.leading = found.width, found.levels, found.leading
        self.patch_size = round(image_size / found.grid[0])
        has_cls = found.leading > 0 and getattr(model, "cls_token", None) is not None
        if cls_token is not None and cls_token != has_cls:
            raise UserError(f"{name} has {'a' if has_cls else 'no'} class token; leave cls_token out")
        self.config: dict[str, Any] = {
            "name": name,
            "image_size": image_size,
            "cls_token": has_cls,
            "drop_path": drop_path,
            **({"model_args": args} if args else {}),
            **({} if final_norm else {"final_norm": False}),
        }
        for number, path in enumerate([n for n, m in model.named_modules() if type(m) is DropPath]):
            parent, _, own = path.rpartition(".")
            owner = model.get_submodule(parent)
            setattr(owner, own, KeyedDropPath(getattr(owner, own), number))

    def timm_name(self, name: str) -> str:
        """timm's name of a tensor of this module's state dict."""
        own, _, rest = name.partition(".")
        return rest if own == "model" else f"{self.layout.norm}.{rest}"

    def final_norm(self, tokens: Tensor) -> Tensor:
        """The model's last norm on tokens [B, D] or [B, n, D]."""
        if not self.layout.channels_first or isinstance(self.norm, nn.Identity):
            return self.norm(tokens)
        flat = tokens.reshape(len(tokens), -1, tokens.shape[-1]).transpose(1, 2).unsqueeze(-1)
        return self.norm(flat).squeeze(-1).transpose(1, 2).reshape(tokens.shape)

    def forward(self, images: Tensor) -> Encoded:
        return self.encode(images)

    def encode(
        self,
        images: Tensor,
        mask: Tensor | None = None,
        fill: str = "drop",
        layers: Sequence[int] = (),
        attention: bool = False,
        keys: Tensor | None = None,
    ) -> Encoded:
        """As ``mimbench.encoder.Backbone.encode``; a mask is a ValueError."""
        if mask is not None:
            raise ValueError("a model of timm sees whole images; it takes no mask")
        if attention:
            raise self._no_attention()
        if any(not -self.depth <= layer < 0 for layer in layers):
            raise ValueError(f"layers count from the end, -1 to -{self.depth}; got {list(layers)}")
        last, taps = self._run(images, layers, keys)
        finish = self.final_norm
        cls, patches = self._split(last)
        return Encoded(
            None if cls is None else finish(cls), finish(patches), None, tuple(taps[i] for i in layers), None
        )

    def _run(
        self, images: Tensor, layers: Sequence[int], keys: Tensor | None
    ) -> tuple[Tensor, dict[int, tuple[Tensor | None, Tensor]]]:
        """Tokens [B, leading + N, D] before the last norm, and (cls, patches) of layers."""
        for part in self.model.modules():
            if isinstance(part, KeyedDropPath):
                part.keys = keys
        earlier = sorted({layer for layer in layers if layer != -1})
        if not earlier:
            last = self._tokens(self.model.forward_features(images))
            return last, {-1: self._split(last)}
        leading = {"return_prefix_tokens": True} if self.leading else {}
        count = len(self.model.feature_info)
        out, maps = self.model.forward_intermediates(
            images, indices=[count + i for i in earlier], norm=False, output_fmt="NCHW", **leading
        )
        last = self._tokens(out)
        taps = {-1: self._split(last)}
        for i, taken in zip(earlier, maps, strict=True):
            patches = taken[0] if self.leading else taken
            cls = taken[1][:, 0] if self.config["cls_token"] else None
            taps[i] = (cls, patches.flatten(2).transpose(1, 2))
        return last, taps

    def _tokens(self, features: Tensor) -> Tensor:
        if self.layout.form == "NCHW":
            return features.flatten(2).transpose(1, 2)
        return features.flatten(1, 2) if self.layout.form == "NHWC" else features

    def _split(self, x: Tensor) -> tuple[Tensor | None, Tensor]:
        return (x[:, 0] if self.config["cls_token"] else None), x[:, self.leading :]

    def maps(
        self,
        images: Tensor,
        layers: Sequence[int],
        *,
        window: int | None = None,
        global_blocks: Sequence[int] = (),
        keys: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """See ``mimbench.encoder.Backbone``. UserError for windows, which a plain transformer takes only."""
        check_images(images, self.image_size)
        check_layers(layers, self.depth)
        if window is not None:
            raise UserError(
                f"attention within windows takes a plain vision transformer; {self.config['name']} is a "
                f"{type(self.model).__name__}"
            )
        taps = self._run(images, layers, keys)[1]
        return tuple(taps[layer][1].transpose(1, 2).unflatten(2, self.grid) for layer in layers)

    def attentions(self, images: Tensor, layers: Sequence[int]) -> tuple[Tensor, ...]:
        """A UserError: timm gives no attention of these models."""
        raise self._no_attention()

    def _no_attention(self) -> UserError:
        return UserError(
            f"there are no attention maps over whole images of {self.config['name']}, a "
            f"{type(self.model).__name__}; leave out what looks at attention"
        )

    def rebuilt(self, *, image_size: int | None = None, drop_path: float | None = None) -> TimmFeatures:
        """See ``mimbench.encoder.Backbone``; weights whose shape follows the size are interpolated by timm.

        The windows of a Swin grow with larger images, so that there are as many of them (as in its official
        fine-tuning at 384 pixels, or SimMIM's from 192 to 224), and do not shrink with smaller ones.
        """
        size = self.image_size if image_size is None else image_size
        rate = self.config["drop_path"] if drop_path is None else drop_path
        if not 0 <= rate < 1:
            raise UserError(f"a drop path rate is at least 0 and below 1; got {rate}")
        args = dict(self.config.get("model_args", {}))
        if size != self.image_size and (window := self._window()):
            args["window_size"] = max(window, round(window * size / self.image_size))
        config = {**self.config, "image_size": size, "drop_path": rate, "model_args": args}
        copy = TimmFeatures(**config)
        state, wanted = self.state_dict(), copy.state_dict()
        apart = [name for name in wanted if name not in state or state[name].shape != wanted[name].shape]
        if apart:
            state |= _brought_to(copy, {self.timm_name(k): v for k, v in state.items()}, apart)
        some = next(self.parameters())
        copy.to(device=some.device, dtype=some.dtype)
        copy.load_state_dict({name: state[name] for name in wanted})
        return copy.requires_grad_(True).train(self.training)

    def _window(self) -> int | None:
        """The width of a Swin's windows, one for all stages."""
        if "window_size" not in accepted(type(self.model)):
            return None
        sizes = [part.window_size[0] for part in self.model.modules() if hasattr(part, "window_area")]
        return int(sizes[0]) if sizes and sizes[0] == max(sizes) else None

    def group_matcher(self, coarse: bool = False) -> Any:
        """timm's own (patterns, or a function of a name), for the names here.

        The last norm is matched by nothing, as a head's parameters are.
        """
        if not hasattr(self.model, "group_matcher"):
            raise UserError(f"timm has no layers of {self.config['name']} for layer-wise decay; set it to 1")
        found = self.model.group_matcher(coarse=coarse)
        if callable(found):
            return lambda name: found(name.removeprefix("model."))
        return {group: _prefixed(patterns) for group, patterns in found.items()}

    def no_weight_decay(self) -> set[str]:
        """timm's own, by the names here."""
        own: set[str] = getattr(self.model, "no_weight_decay", set)()
        return {name for name, _ in self.named_parameters() if name.removeprefix("model.") in own}


def _prefixed(patterns: Any) -> Any:
    """timm's patterns of names for names that begin with ``model.``"""
    if isinstance(patterns, str):
        return r"^model\.(?:" + re.sub(r"(?<!\[)\^", "", patterns) + ")"
    if isinstance(patterns, (list, tuple)):
        return [(_prefixed(pattern), order) for pattern, order in patterns]
    return patterns


def _brought_to(copy: TimmFeatures, state: dict[str, Tensor], apart: Sequence[str]) -> dict[str, Tensor]:
    """The tensors ``apart`` of ``copy``, out of weights of another size by timm's loading of such."""
    config = copy.config
    own = dict(copy.model.named_parameters()).get("pos_embed")
    if own is not None and own.ndim == 3 and isqrt(own.shape[1]) ** 2 == own.shape[1]:
        new = [
            isqrt(own.shape[1])
        ] * 2  # no class token among them; timm's loading leaves Hiera's as they are
        state = {**state, "pos_embed": resample_abs_pos_embed(state["pos_embed"], new, num_prefix_tokens=0)}
    args = {**config.get("model_args", {}), "num_classes": 0}
    given = create(config["name"], config.get("model_args"), img_size=copy.image_size)
    full = {**given.state_dict(), **state}  # with the head's, which are not used
    overlay = {"state_dict": full, "num_classes": 0, "label_offset": 0}
    sized: dict[str, Any] = {"img_size": copy.image_size} if "img_size" in accepted(type(given)) else {}
    architecture = config["name"].removeprefix(PREFIX).partition(".")[0]
    try:
        model = timm.create_model(
            architecture, pretrained=True, pretrained_cfg_overlay=overlay, **args, **sized
        )
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UserError(
            f"timm cannot bring the weights of {config['name']} to images of {copy.image_size} pixels "
            f"({str(error).strip().splitlines()[0]}); keep its own size"
        ) from error
    found = model.state_dict()
    return {name: found[copy.timm_name(name)] for name in apart}
