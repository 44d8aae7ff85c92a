"""Vision transformers of timm, with whatever weights timm has for them, as backbones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mimbench.torchvision_compat  # noqa: F401  isort: skip
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from method_zoo.backbones.blocks import choose_attention, run_block
from method_zoo.backbones.timm_models import create, is_plain
from method_zoo.backbones.transformer import Placing, Transformer
from method_zoo.backbones.windows import Windows
from mimbench.encoder import Encoded
from mimbench.errors import UserError


class TimmViT(Transformer):
    """A vision transformer of timm behind the interface of backbones, for whole images only.

    ``model`` is timm's own up to the first block; ``blocks`` and ``norm`` are its blocks and the layer norm
    after the last, run here one by one. A norm that timm has after pooling is applied to each token here.

    name: "timm:" and timm's name. image_size: in pixels. model_args: of timm's class, beside those that the
    name stands for. final_norm: False for weights whose last norm was not trained. drop_path: rate of dropped
    residual branches at the last block, growing linearly from 0 at the first. cls_token: whether there is
    one, which the name decides; noted only.
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
        model = create(name, args, img_size=image_size)
        if not is_plain(model):
            raise UserError(f"timm's {name} is no plain vision transformer but a {type(model).__name__}")
        self.blocks, self.norm, self.model = model.blocks, model.norm, model
        self._norm_name = "norm"
        if isinstance(self.norm, nn.Identity) and not isinstance(model.fc_norm, nn.Identity):
            self.norm, self._norm_name = model.fc_norm, "fc_norm"
        if not final_norm:
            self.norm = nn.Identity()
        model.blocks, model.norm = nn.Sequential(), nn.Identity()
        model.attn_pool = model.fc_norm = nn.Identity()  # only timm's heads use them
        self.image_size, self.patch_size = image_size, model.patch_embed.patch_size[0]
        self.embed_dim, self.depth = model.embed_dim, len(self.blocks)
        self.num_heads = int(getattr(self.blocks[0], "attn", self.blocks[0]).num_heads)
        self.grid = tuple(model.patch_embed.grid_size)
        self.leading = model.num_prefix_tokens
        self.config: dict[str, Any] = {
            "name": name,
            "image_size": image_size,
            "cls_token": model.has_class_token,
            "drop_path": drop_path,
            **({"model_args": args} if args else {}),
            **({} if final_norm else {"final_norm": False}),
        }
        if cls_token is not None and cls_token != model.has_class_token:
            raise UserError(
                f"{name} has {'a' if model.has_class_token else 'no'} class token; leave cls_token out"
            )
        self.drop_path, self.drop_path_rule = drop_path, "linear"
        if drop_path:
            self._check_plain("drop path")

    def timm_name(self, name: str) -> str:
        """timm's name of a tensor of this module's state dict."""
        if name.startswith("norm."):
            return f"{self._norm_name}.{name.removeprefix('norm.')}"
        return name.removeprefix("model.")

    def _check_plain(self, what: str) -> None:
        for block in self.blocks:
            if type(block) is not Block:
                raise UserError(
                    f"{what} takes a vision transformer of plain blocks; those of {self.config['name']} are "
                    f"{type(block).__name__}s"
                )

    def enter(self, images: Tensor, keys: Tensor | None) -> Tensor:
        """Patches, positions, class token, registers and what norm timm's model has before its blocks."""
        return self.model.forward_features(images)

    def placing(self, leading: bool) -> Placing:
        """timm's plain blocks are told nothing of places."""
        return lambda i, windows: None

    def run_block(
        self,
        i: int,
        x: Tensor,
        place: None,
        scales: Tensor | None,
        keys: Tensor | None,
        windows: Windows | None = None,
    ) -> Tensor:
        """The output of the i-th block on x [B, T, D]."""
        if windows is not None:
            self._check_plain("attention within windows")
        if scales is None and windows is None:
            return self.blocks[i](x)
        return run_block(self.blocks[i], x, None, scales, windows)

    def adapt(self, image_size: int) -> None:
        """timm's own change of size, which interpolates positions as its loading of weights does."""
        if image_size != self.image_size:
            self.model.set_input_size(img_size=(image_size, image_size))

    def rebuilt(self, *, image_size: int | None = None, drop_path: float | None = None) -> TimmViT:
        """See ``Transformer``. UserError for drop path in a model whose blocks are not timm's plain ones."""
        if drop_path:
            self._check_plain("drop path")
        copy = super().rebuilt(image_size=image_size, drop_path=drop_path)
        copy.config.pop("drop_path_rule", None)  # always linear here
        return copy

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
        if any(not -self.depth <= layer < 0 for layer in layers):
            raise ValueError(f"layers count from the end, -1 to -{self.depth}; got {list(layers)}")
        x, taps, probabilities = self.enter(images, keys), {}, None
        scales = self.branch_scales(x, keys)
        choose_attention(self.blocks, x)
        for i in range(self.depth):
            if attention and i == self.depth - 1:
                probabilities = self.look(i, x, None)
            x = self.run_block(i, x, None, None if scales is None else scales[i], keys)
            taps[i - self.depth] = x
        cls, patches = self._split(self.norm(x))
        return Encoded(cls, patches, None, tuple(self._split(taps[i]) for i in layers), probabilities)

    def _split(self, x: Tensor) -> tuple[Tensor | None, Tensor]:
        return (x[:, 0] if self.model.has_class_token else None), x[:, self.leading :]
