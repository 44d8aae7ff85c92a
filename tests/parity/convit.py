"""ConViT, the encoder of ConvMAE and DMJD as their pre-training runs it.

Under masks, and with all that evaluation leaves out (see ``method_zoo.backbones.convmae``).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from method_zoo.backbones.convmae import ConvMAE
from method_zoo.parts.patches import take, where
from mimbench.encoder import Encoded

from .adapter import Config, Rules


class ConViT(ConvMAE):
    """Convolutions see only what is visible, and their outputs are added to the transformer's tokens."""

    def __init__(self, **options: Any):
        super().__init__(final_norm=True, **options)
        sides = (4, 2)
        self.skips = nn.ModuleList(
            nn.Conv2d(dim, self.embed_dim, side, stride=side)
            for dim, side in zip(options["stem_dims"], sides, strict=True)
        )

    def encode(self, images: Tensor, mask: Tensor, fill: str = "drop", keys: Tensor | None = None) -> Encoded:  # type: ignore[override]
        kept = where(~mask)
        seen = (~mask).to(images.dtype).view(-1, 1, *self.grid)
        stages = self.stages(images, seen, keys)
        tokens = take(self.project(stages[1]) + self.pos_embed, kept)
        for block in self.blocks:
            tokens = block(tokens)
        for skip, stage in zip(self.skips, stages, strict=True):
            tokens = tokens + take(skip(stage).flatten(2).transpose(1, 2), kept)
        return Encoded(None, self.norm(tokens), kept, (), None)


def sizes(config: Config) -> dict[str, Any]:
    """Of the backbone, in an official configuration whose ratios are all one."""
    depths = config["depth"]
    assert depths[0] == depths[1]
    assert len(set(config["mlp_ratio"])) == 1
    return {
        "image_size": config["img_size"][0],
        "embed_dim": config["embed_dim"][2],
        "stem_dims": config["embed_dim"][:2],
        "stem_depth": depths[0],
        "depth": depths[2],
        "num_heads": config["num_heads"],
        "mlp_ratio": config["mlp_ratio"][2],
        "stem_mlp_ratio": config["mlp_ratio"][0],
    }


RULES: Rules = [
    (r"encoder\.embeddings\.0\.", "model/patch_embed1."),
    (r"encoder\.embeddings\.1\.", "model/patch_embed2."),
    (r"encoder\.embeddings\.2\.", "model/patch_embed3."),
    (r"encoder\.projection\.", "model/patch_embed4."),
    (r"encoder\.stem\.0\.", "model/blocks1."),
    (r"encoder\.stem\.1\.", "model/blocks2."),
    (r"encoder\.blocks\.", "model/blocks3."),
    (r"encoder\.skips\.0\.", "model/stage1_output_decode."),
    (r"encoder\.skips\.1\.", "model/stage2_output_decode."),
    (r"encoder\.norm\.", "model/norm."),
]
