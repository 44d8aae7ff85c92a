"""The floor below every encoder: raw pixels behind the interface of a backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from mimbench.encoder import Encoded
from mimbench.errors import UserError


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
        if image_size % patch_size:
            raise UserError(
                f"backbone {name} cuts images into patches of {patch_size} pixels, which do not divide an "
                f"image size of {image_size}; take another image size or patch size"
            )
        self.config: dict[str, Any] = {
            "name": name,
            "image_size": image_size,
            "patch_size": patch_size,
            "side": side,
            "cls_token": cls_token,
        }
        self.cls_token = cls_token
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
            raise UserError("raw pixels have no attention; ask it of a ViT backbone")
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

    def forward(self, images: Tensor) -> Encoded:
        return self.encode(images)
