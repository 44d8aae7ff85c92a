"""The floor below every encoder: raw pixels behind the interface of a backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from method_zoo.backbones.transformer import check_image_size, check_images, check_layers
from mimbench.encoder import Encoded
from mimbench.errors import UserError

NO_ATTENTION = "raw pixels have no attention; ask it of a ViT backbone"


class Pixels(nn.Module):
    """Gives pixels as tokens, without a parameter.

    The class token is the whole image, average-pooled to ``side`` x ``side`` where it is larger, as
    3·side² numbers (``embed_dim``). A patch token is that patch's own pixels, pooled likewise; with
    patches smaller than ``side`` it is 3·patch_size² long, hence shorter than the class token.
    """

    depth = 1

    def __init__(
        self,
        *,
        name: str = "pixels",
        image_size: int,
        patch_size: int = 16,
        side: int = 32,
        cls_token: bool = True,
    ):
        super().__init__()
        check_image_size(name, patch_size, image_size)
        self.config: dict[str, Any] = {
            "name": name,
            "image_size": image_size,
            "patch_size": patch_size,
            "side": side,
            "cls_token": cls_token,
        }
        self.cls_token, self.image_size = cls_token, image_size
        self.patch_size = patch_size
        self.side = min(side, image_size)
        self.embed_dim = 3 * self.side**2
        self.grid = (image_size // patch_size, image_size // patch_size)

    def encode(
        self,
        images: Tensor,
        mask: Tensor | None = None,
        fill: Literal["drop", "token"] = "drop",
        layers: Sequence[int] = (),
        attention: bool = False,
        keys: Tensor | None = None,
    ) -> Encoded:
        """See ``mimbench.encoder.Backbone``. Hidden patches are zero: the mean of normalised images."""
        if attention:
            raise UserError(NO_ATTENTION)
        size, kept = self.patch_size, None
        if mask is not None:
            shown = (~mask).view(-1, 1, *self.grid).repeat_interleave(size, 2).repeat_interleave(size, 3)
            images = images * shown
        patches = F.pixel_unshuffle(images, size).flatten(2).transpose(1, 2)  # [B, N, 3·P·P]
        if mask is not None and fill == "drop":
            kept = (~mask).nonzero()[:, 1].view(len(mask), -1)
            patches = patches.gather(1, kept[:, :, None].expand(-1, -1, patches.shape[2]))
        cls = F.adaptive_avg_pool2d(images, self.side).flatten(1) if self.cls_token else None
        squares = patches.reshape(-1, 3, size, size)
        tokens = F.adaptive_avg_pool2d(squares, min(self.side, size)).reshape(*patches.shape[:2], -1)
        return Encoded(cls, tokens, kept, ((cls, tokens),) * len(layers), None)

    def final_norm(self, tokens: Tensor) -> Tensor:
        """The identity: pixels have no last norm."""
        return tokens

    def rebuilt(self, *, image_size: int | None = None, drop_path: float | None = None) -> Pixels:
        """See ``mimbench.encoder.Backbone``. There is no path to drop."""
        return Pixels(**(self.config if image_size is None else {**self.config, "image_size": image_size}))

    def maps(
        self,
        images: Tensor,
        layers: Sequence[int],
        *,
        window: int | None = None,
        global_blocks: Sequence[int] = (),
        keys: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """See ``mimbench.encoder.Backbone``; windows change nothing where nothing looks at anything."""
        check_images(images, self.image_size)
        check_layers(layers, self.depth)
        tokens = self.encode(images).patches
        return (tokens.transpose(1, 2).unflatten(2, self.grid),) * len(layers)

    def attentions(self, images: Tensor, layers: Sequence[int]) -> tuple[Tensor, ...]:
        """Always a UserError: there is none."""
        raise UserError(NO_ATTENTION)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """See ``mimbench.encoder.Backbone``; there is nothing to match."""
        return {}

    def no_weight_decay(self) -> set[str]:
        """None: there is no parameter."""
        return set()

    def forward(self, images: Tensor) -> Encoded:
        return self.encode(images)
