"""SiameseIM: Siamese image modeling for self-supervised vision representation learning."""

from __future__ import annotations

from typing import Annotated, Literal

import mimbench.torchvision_compat  # noqa: F401  isort: skip
import torch
from pydantic import Field
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from method_zoo.backbones.blocks import LayerNorm, choose_attention
from method_zoo.backbones.initial import xavier_
from method_zoo.backbones.positions import sincos_positions
from method_zoo.parts.collective import averaged
from method_zoo.parts.ema import MovingAverage, cosine
from method_zoo.parts.heads import TokenBatchNorm
from method_zoo.parts.masking import BlockMask
from method_zoo.parts.patches import joined
from method_zoo.parts.relative_positions import Placement, placement, relative_sincos
from mimbench.encoder import Backbone
from mimbench.errors import UserError
from mimbench.method import Losses, Method, Step
from mimbench.spec import Augmentation, Card, Classes, Readout, Recipe, View

Count = Annotated[int, Field(ge=1)]
BlockNorm = Literal["batch", "layer"]
COLOURS = {"color_jitter": 0.4, "saturation": 0.2, "hue": 0.1, "jitter_probability": 0.8, "grayscale": 0.2}


class SiameseIM(Method):
    """Siamese image modeling (Tao et al., 2023, arXiv:2206.01204).

    From the visible patches of one view, and told where the second view lies, it predicts what a moving
    average of itself makes of each patch of that view. A dense form of UniGrad keeps features apart.
    """

    card = Card(
        key="siameseim",
        name="SiameseIM",
        paper="Siamese Image Modeling for Self-Supervised Vision Representation Learning",
        authors="Tao, Zhu, Su, Huang, Li, Zhou, Qiao, Wang, Dai",
        year=2023,
        arxiv="2206.01204",
        code="https://github.com/OpenGVLab/Siamese-Image-Modeling",
        scheme="contrastive",
        masking="block, on one of two views",
        target="high level: features of a moving average, at each patch of another view",
        architecture="ViT encoder on visible patches, transformer projector and predictor, moving average",
        objective="dense agreement and decorrelation (UniGrad)",
        classes=Classes(
            masking="random",
            target="trained teacher",
            architecture="plain transformer",
            objective="contrastive",
        ),
        recipe=Recipe(
            base_lr=6.25e-5,
            lr_rule="per_256",
            batch_size=4096,
            betas=(0.9, 0.95),
            weight_decay=0.05,
            warmup=40 / 1600,
            clip_grad=1.0,
            augmentation=Augmentation(
                crop_scale=(0.08, 1.0), interpolation="bicubic", flip=True, blur=1.0, **COLOURS
            ),
            source=(
                "OpenGVLab/Siamese-Image-Modeling configs/pretrain/dist_sim_base_1600ep.sh and "
                "main_pretrain.py, ViT-B/16 on ImageNet-1K, 1600 epochs"
            ),
        ),
        readout=Readout(token="mean"),
        backbone={"positions": "sincos_y_first", "final_norm": False, "init": "mae"},
        parity="verified",
        notes=(
            "The encoder has no final norm and its patch embedding stays as initialised, as in the code. "
            "projector_norm and predictor_norm are batch norms over all tokens, the average's by the "
            "statistics of its batch; normalise_prediction, off in the published command, puts the "
            "prediction through a layer norm that does not learn. Projector and predictor have 2 and 4 "
            "blocks of the encoder's width at ViT-B, fewer for a shallower encoder."
        ),
    )
    couples_batch = True

    def __init__(
        self,
        backbone: Backbone,
        *,
        mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 118 / 196,
        min_block: Annotated[float, Field(gt=0, lt=1)] = 16 / 196,
        negative_weight: Annotated[float, Field(ge=0)] = 0.02,
        momentum: Annotated[float, Field(ge=0, le=1)] = 0.995,
        train_patch_embed: bool = False,
        normalise_prediction: bool = False,
        projector_norm: BlockNorm = "batch",
        predictor_norm: BlockNorm = "batch",
        projector_depth: Annotated[int, Field(ge=0)] | None = None,
        predictor_depth: Count | None = None,
        decoder_dim: Annotated[int, Field(ge=4)] | None = None,
        decoder_heads: Count | None = None,
    ):
        super().__init__()
        self.encoder = backbone
        self.encoder.patch_embed.requires_grad_(train_patch_embed)
        n_patches = backbone.grid[0] * backbone.grid[1]
        self.masking = BlockMask(mask_ratio, min_block=max(1, round(min_block * n_patches)), exact=True)
        self.masking.n_hidden(backbone.grid)  # a ratio too small or large for the grid is found out now
        second = Augmentation(crop_scale=(0.08, 1.0), blur=0.1, solarize=0.2, **COLOURS)
        self.views = (View(augmentation=second, image_size=backbone.config["image_size"]),)
        self.negative_weight, self.momentum = negative_weight, momentum

        dim = decoder_dim or backbone.embed_dim
        heads = decoder_heads or _heads(dim)
        if dim % heads:
            raise UserError(f"a width of {dim} does not divide into {heads} heads; change decoder_heads")
        if projector_depth is None:
            projector_depth = min(2, max(1, round(backbone.depth / 6)))
        predictor_depth = predictor_depth or min(4, max(1, round(backbone.depth / 3)))
        mlp_ratio = backbone.config["mlp_ratio"]

        self.embed = nn.Linear(backbone.embed_dim, dim)
        self.projector = _blocks(dim, projector_depth, heads, mlp_ratio, projector_norm)
        self.register_buffer("positions", sincos_positions(dim, backbone.grid, "y"), persistent=False)
        self.embed_place = nn.Linear(2 * dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.predictor = _blocks(dim, predictor_depth, heads, mlp_ratio, predictor_norm)
        self.head = nn.Linear(dim, dim)
        xavier_(nn.ModuleList([self.embed, self.projector, self.embed_place, self.predictor, self.head]))
        nn.init.normal_(self.mask_token, std=0.02)
        self.student_norm = nn.LayerNorm(dim).requires_grad_(False) if normalise_prediction else nn.Identity()
        self.teacher = MovingAverage(**self._averaged())

    def _averaged(self) -> dict[str, nn.Module]:
        return {"encoder": self.encoder, "embed": self.embed, "projector": self.projector}

    def forward(self, images: Tensor, step: Step) -> Losses:
        mask = self.masking(step.keys, self.encoder.grid)
        return self.losses(images, step.views[1].images, placement(*step.views), mask, step.keys)

    def losses(
        self, images: Tensor, other: Tensor, place: Placement, mask: Tensor, keys: Tensor | None = None
    ) -> Losses:
        """Losses under a given mask of the images, bool [B, N], True = hidden.

        other: the second view. place: where it lies in the first.
        """
        encoded = self.encoder.encode(images, mask, fill="drop", keys=keys)
        tokens = run(self.projector, self.embed(joined(encoded.cls, encoded.patches)))
        positions = self.positions[encoded.kept]
        positions = F.pad(
            positions, (0, 0, tokens.shape[1] - positions.shape[1], 0)
        )  # a class token's is zero
        there = relative_sincos(place, self.encoder.grid, tokens.shape[-1])
        wanted = self.mask_token + self.embed_place(there)
        tokens = run(self.predictor, torch.cat([tokens + positions, wanted], dim=1))
        predicted = self.head(tokens)[:, -wanted.shape[1] :].to(images.dtype)
        return Losses(similarity=self._unigrad(self.student_norm(predicted), self.targets(other)))

    @torch.no_grad()
    def targets(self, images: Tensor) -> Tensor:
        """The teacher's normalised projections of all patches of whole images, [B, N, D]."""
        encoded = self.teacher["encoder"].encode(images)
        tokens = self.teacher["embed"](joined(encoded.cls, encoded.patches))
        projected = run(self.teacher["projector"], tokens)[:, -encoded.patches.shape[1] :]
        return F.layer_norm(projected.to(images.dtype), projected.shape[-1:])

    def _unigrad(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Distance to the target, plus the prediction's variance in the directions that targets share."""
        predicted, target = predicted.flatten(0, 1), target.flatten(0, 1)
        with torch.autocast(predicted.device.type, enabled=False):
            correlation = averaged(target.T @ target / len(target))  # over all processes' patches
            shared = (predicted @ correlation * predicted).sum(-1).mean()
        distance = (predicted - target).square().sum(-1).mean()
        return (distance + self.negative_weight * shared) / predicted.shape[-1]

    def after_step(self, step: Step) -> None:
        self.teacher.update(cosine(self.momentum, 1.0, step.progress), **self._averaged())


def run(blocks: nn.Module, tokens: Tensor) -> Tensor:
    """Tokens [B, T, D] through transformer blocks."""
    choose_attention(blocks, tokens)
    for block in blocks:
        tokens = block(tokens)
    return tokens


def _heads(dim: int) -> int:
    """As many heads of about the published width, 48, as divide ``dim``."""
    return next(heads for heads in range(max(1, dim // 48), 0, -1) if dim % heads == 0)


def _blocks(dim: int, depth: int, heads: int, mlp_ratio: float, norm: BlockNorm) -> nn.ModuleList:
    layer = TokenBatchNorm if norm == "batch" else LayerNorm
    return nn.ModuleList(
        Block(dim, heads, mlp_ratio=mlp_ratio, qkv_bias=True, norm_layer=layer) for _ in range(depth)
    )
