"""BEiT v2: masked image modelling with vector-quantised visual tokenizers."""

from __future__ import annotations

from typing import Annotated, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from method_zoo.backbones.blocks import LayerNorm, choose_attention, drop_path_scales, make_block, run_block
from method_zoo.backbones.initial import shrink_outputs_, truncated_normal_
from method_zoo.parts.frozen import Frozen
from method_zoo.parts.images import Denormalise
from method_zoo.parts.masking import BlockMask
from method_zoo.parts.tokenizers import token_ids
from mimbench.encoder import Backbone
from mimbench.errors import UserError
from mimbench.method import Losses, Method, Step, Tokenizer
from mimbench.spec import Augmentation, Card, Classes, Readout, Recipe


class BEiTv2(Method):
    """BEiT v2 (Peng et al., 2022, arXiv:2208.06366).

    BEiT with tokens of a tokenizer that was distilled from a teacher's features (VQ-KD), and with an
    aggregation head: a shallow transformer that sees the class token of the last block beside the patches
    of an earlier one has to tell the hidden tokens as well, so that the class token must carry the image.
    """

    card = Card(
        key="beitv2",
        name="BEiT v2",
        paper="BEiT v2: Masked Image Modeling with Vector-Quantized Visual Tokenizers",
        authors="Peng, Dong, Bao, Ye, Wei",
        year=2022,
        arxiv="2208.06366",
        code="https://github.com/microsoft/unilm/tree/master/beit2",
        scheme="reconstruction",
        masking="block",
        target="high level: discrete tokens distilled from a frozen teacher",
        architecture="ViT encoder with mask tokens, linear head, shallow transformer for the class token",
        objective="classification (cross-entropy over the vocabulary), twice",
        classes=Classes(
            masking="random",
            target="frozen teacher",
            architecture="plain transformer",
            objective="classification",
        ),
        external="tokenizer",
        recipe=Recipe(
            base_lr=1.5e-3,
            lr_rule="absolute",
            batch_size=2048,
            betas=(0.9, 0.999),
            weight_decay=0.05,
            warmup=10 / 1600,
            min_lr=1e-5,
            clip_grad=3.0,
            drop_path=0.1,
            augmentation=Augmentation(
                crop_scale=(0.2, 1.0), interpolation="bicubic", flip=True, color_jitter=0.4
            ),
            source=(
                "microsoft/unilm beit2/PRETRAINING.md, BEiT v2-B on ImageNet-1K, 1600 epochs; min_lr and "
                "color_jitter are the code's defaults. For 300 epochs: betas (0.9, 0.98), drop_path 0"
            ),
        ),
        readout=Readout(token="cls"),
        backbone={
            "positions": "none",
            "rel_pos": "shared",
            "layer_scale": 0.1,
            "qkv_bias": "query_value",
            "mask_token": True,
            "init": "beit",
        },
        parity="verified",
        notes=(
            "The paper's tokenizer is distilled from CLIP on ImageNet-1K (8192 codes of 32 numbers); here a "
            "vqkd tokenizer is trained on the same data from the teacher given to it, its cost and its "
            "teacher's counted. Both heads predict with the same norm and linear layer, as published; "
            "shared_head=false is the code's other option. The aggregation head reads block 9 of 12 (B) or "
            "21 of 24 (L), here three blocks before the last, at most a quarter of the depth; early_layer "
            "sets it. 75 of 196 patches are hidden exactly; mask_ratio and min_block keep these shares on "
            "other grids. Large models are published with a layer scale of 1e-5."
        ),
    )
    needs = {"tokenizer": "vqkd"}

    def __init__(
        self,
        backbone: Backbone,
        *,
        tokenizer: Tokenizer,
        mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 75 / 196,
        min_block: Annotated[float, Field(gt=0, lt=1)] = 16 / 196,
        early_layer: Annotated[int, Field(ge=1)] | None = None,
        head_layers: Annotated[int, Field(ge=1)] = 2,
        shared_head: bool = True,
    ):
        super().__init__()
        self.encoder = backbone
        self.tokenizer = Frozen(tokenizer=cast(nn.Module, tokenizer))
        self.denormalise = Denormalise(self.card)
        n_patches = backbone.grid[0] * backbone.grid[1]
        smallest = max(1, round(min_block * n_patches))
        self.masking = BlockMask(ratio=mask_ratio, min_block=smallest, exact=True)
        self.masking.n_hidden(backbone.grid)  # a ratio too small or large for the grid is found out now
        depth = backbone.depth
        early = early_layer or depth - min(3, max(1, round(depth / 4)))
        if not 0 < early <= depth:
            raise UserError(
                f"early_layer is {early}, and the encoder has {depth} blocks; choose one from 1 to {depth}"
            )
        self.early = early - depth - 1  # from the end, as encoders count

        self.aggregation = nn.ModuleList(make_block(backbone.config) for _ in range(head_layers))
        truncated_normal_(self.aggregation)
        shrink_outputs_(self.aggregation, first=early + 1)
        rate = backbone.config["drop_path"]
        rates = torch.linspace(0, rate, max(depth, early + head_layers)).tolist()
        self.drop_rates = rates[early : early + head_layers]
        self.head = nn.Linear(backbone.embed_dim, tokenizer.vocabulary)
        truncated_normal_(self.head)
        self.own_head = None
        if not shared_head:
            self.own_head = nn.Sequential(
                LayerNorm(backbone.embed_dim), nn.Linear(*self.head.weight.shape[::-1])
            )
            truncated_normal_(self.own_head)

    def forward(self, images: Tensor, step: Step) -> Losses:
        ids = token_ids(self.tokenizer["tokenizer"], self.denormalise(images), self.encoder.grid)
        return self.losses(images, self.masking(step.keys, self.encoder.grid), ids, step.keys)

    def losses(self, images: Tensor, mask: Tensor, ids: Tensor, keys: Tensor | None = None) -> Losses:
        """Losses under a given mask, bool [B, N], True = hidden, and given tokens, int64 [B, N]."""
        encoded = self.encoder.encode(images, mask, fill="token", layers=(-1, self.early), keys=keys)
        (cls, _), (_, early) = encoded.layers
        aggregated = self._aggregate(torch.cat([cls.unsqueeze(1), early], dim=1), keys)[mask]
        logits = self.head(encoded.patches[mask])
        if self.own_head is None:
            aggregated = self.head(self.encoder.final_norm(aggregated))
        else:
            aggregated = self.own_head(aggregated)
        return Losses(
            tokens=F.cross_entropy(logits.to(images.dtype), ids[mask]),
            aggregated=F.cross_entropy(aggregated.to(images.dtype), ids[mask]),
        )

    def _aggregate(self, x: Tensor, keys: Tensor | None) -> Tensor:
        """Patch tokens after the aggregation head, [B, N, D]. x: class token, early patches [B, 1 + N, D]."""
        scales = drop_path_scales(self.drop_rates, x, keys, "aggregation") if self.training else None
        bias = self.encoder.position_bias()
        choose_attention(self.aggregation, x)
        for i, block in enumerate(self.aggregation):
            x = run_block(block, x, bias, None if scales is None else scales[i])
        return x[:, 1:]
