"""CAE: context autoencoder for self-supervised representation learning."""

from __future__ import annotations

from typing import Annotated, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from method_zoo.backbones.blocks import LayerNorm, choose_attention, drop_path_scales, make_block, run_block
from method_zoo.backbones.initial import xavier_
from method_zoo.backbones.positions import sincos_positions
from method_zoo.parts.cross import CrossBlock
from method_zoo.parts.decoders import decoder_size
from method_zoo.parts.frozen import Frozen
from method_zoo.parts.images import Denormalise
from method_zoo.parts.losses import squared_error
from method_zoo.parts.masking import BlockMask
from method_zoo.parts.patches import where
from method_zoo.parts.tokenizers import token_ids
from mimbench.encoder import Backbone
from mimbench.method import Losses, Method, Step, Tokenizer
from mimbench.spec import Augmentation, Card, Classes, Readout, Recipe


class CAE(Method):
    """Context autoencoder (Chen et al., 2022, arXiv:2202.03026).

    The encoder sees the visible patches. A regressor, cross-attention from mask tokens to them, predicts
    the latent representations of the hidden patches, which are aligned with what the same encoder makes
    of the hidden patches alone; a decoder tells the patches' tokens from the predicted latents only. So
    completing the image is left to the regressor and the encoder's task is to represent.
    """

    card = Card(
        key="cae",
        name="CAE",
        paper="Context Autoencoder for Self-Supervised Representation Learning",
        authors="Chen, Ding, Wang, Xin, Mo, Wang, Han, Luo, Zeng, Wang",
        year=2022,
        arxiv="2202.03026",
        code="https://github.com/Atten4Vis/CAE",
        scheme="reconstruction",
        masking="block",
        target="low level: discrete tokens; high level: the encoder's own features",
        architecture="ViT encoder on visible patches, cross-attention regressor, transformer decoder",
        objective="classification (cross-entropy over the vocabulary) and alignment (L2)",
        classes=Classes(
            masking="random",
            target="tokens + own features",
            architecture="plain transformer",
            objective="reconstruction + classification",
        ),
        external="tokenizer",
        recipe=Recipe(
            base_lr=1.5e-3,
            lr_rule="absolute",
            batch_size=2048,
            betas=(0.9, 0.999),
            weight_decay=0.05,
            warmup=20 / 800,
            min_lr=1e-5,
            clip_grad=3.0,
            drop_path=0.1,
            augmentation=Augmentation(crop_scale=(0.08, 1.0), interpolation="bicubic", flip=True),
            source="Atten4Vis/CAE scripts/cae_base_800e.sh, ViT-B/16 on ImageNet-1K, 800 epochs",
        ),
        readout=Readout(token="cls"),
        backbone={
            "positions": "sincos_y_first",
            "layer_scale": 0.1,
            "qkv_bias": "query_value",
            "init": "mae",
        },
        parity="verified",
        notes=(
            "The code's second network for the alignment is the encoder itself: after the first step the two "
            "share their weights, and there is no moving average. Where the regressor has another width, the "
            "target goes through the same projection. A regressor block goes on from its normed tokens "
            "after the attention, as in the code. The tokenizer is as of BEiT: the paper's is OpenAI's dVAE "
            "on a second, 112-pixel view; here it gets the training image, and without given weights one is "
            "trained on the same data and its cost counted. Regressor and decoder have a third of the "
            "encoder's depth each (4 at ViT-B, 4 at most) and its width and heads. Large models are "
            "published with a layer scale of 1e-5. The code draws the patch embedding from a normal of 0.02 "
            "instead of Xavier's."
        ),
    )
    needs = {"tokenizer": "vqvae"}

    def __init__(
        self,
        backbone: Backbone,
        *,
        tokenizer: Tokenizer,
        mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.5,
        min_block: Annotated[float, Field(gt=0, lt=1)] = 16 / 196,
        align_weight: Annotated[float, Field(ge=0)] = 2.0,
        regressor_depth: Annotated[int, Field(ge=1)] | None = None,
        decoder_dim: Annotated[int, Field(ge=4)] | None = None,
        decoder_depth: Annotated[int, Field(ge=1)] | None = None,
        decoder_heads: Annotated[int, Field(ge=1)] | None = None,
    ):
        super().__init__()
        self.encoder = backbone
        self.tokenizer = Frozen(tokenizer=cast(nn.Module, tokenizer))
        self.denormalise = Denormalise(self.card)
        smallest = max(1, round(min_block * backbone.grid[0] * backbone.grid[1]))
        self.masking = BlockMask(ratio=mask_ratio, min_block=smallest, exact=True, attempts=1000)
        self.masking.n_hidden(backbone.grid)  # a ratio too small or large for the grid is found out now
        self.align_weight = align_weight

        config, width = backbone.config, backbone.embed_dim
        third = min(4, max(1, round(backbone.depth / 3)))
        dim, depth, heads = decoder_size(
            backbone, decoder_dim or width, decoder_depth or third, decoder_heads or config["num_heads"]
        )
        self.register_buffer("positions", sincos_positions(dim, backbone.grid, "y"), persistent=False)
        self.project: nn.Module = nn.Identity()
        if dim != width:
            self.project = nn.Sequential(nn.Linear(width, dim), LayerNorm(dim))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)
        self.regressor = nn.ModuleList(
            RegressorBlock(
                dim,
                heads,
                mlp_ratio=config["mlp_ratio"],
                context_norm="separate",
                bias=config["qkv_bias"],
                separate=True,
                layer_scale=config["layer_scale"],
            )
            for _ in range(regressor_depth or third)
        )
        self.regressor_norm = LayerNorm(dim)
        block = {**config, "embed_dim": dim, "num_heads": heads}
        self.decoder = nn.ModuleList(make_block(block) for _ in range(depth))
        self.decoder_norm = LayerNorm(dim)
        self.head = nn.Linear(dim, tokenizer.vocabulary)
        for part in (self.project, self.regressor, self.decoder, self.head):
            xavier_(part)

    def forward(self, images: Tensor, step: Step) -> Losses:
        mask = self.masking(step.keys, self.encoder.grid)
        ids = token_ids(self.tokenizer["tokenizer"], self.denormalise(images), self.encoder.grid)
        return self.losses(images, mask, ids, self.latents(images, ~mask, step.keys), step.keys)

    @torch.no_grad()
    def latents(self, images: Tensor, mask: Tensor, keys: Tensor | None = None) -> Tensor:
        """What the encoder makes of the patches that ``mask`` leaves, without gradients, [B, n, D]."""
        return self.encoder.encode(images, mask, fill="drop", keys=keys).patches

    def losses(
        self, images: Tensor, mask: Tensor, ids: Tensor, latents: Tensor, keys: Tensor | None = None
    ) -> Losses:
        """Losses under a given mask, bool [B, N], True = hidden, and given targets.

        ids: tokens of all patches, int64 [B, N]; latents: of the hidden ones as the encoder sees them
        alone, [B, m, D].
        """
        hidden, visible = where(mask), where(~mask)
        seen = self.project(self.encoder.encode(images, mask, fill="drop", keys=keys).patches)
        predicted = self._regress(seen, self.positions[visible], self.positions[hidden], keys)
        logits = self._decode(predicted + self.positions[hidden], keys).to(images.dtype)
        with torch.no_grad():
            target = self.project(latents).to(images.dtype)
        return Losses(
            tokens=F.cross_entropy(logits.flatten(0, 1), ids[mask]),
            alignment=self.align_weight * squared_error(predicted, target).mean(),
        )

    def _regress(self, seen: Tensor, seen_at: Tensor, hidden_at: Tensor, keys: Tensor | None) -> Tensor:
        """Predicted latents of hidden patches, [B, m, dim], from the visible ones', [B, n, dim], and the
        positions of both, [B, n, dim] and [B, m, dim]."""
        x = self.mask_token.to(seen.dtype).expand_as(hidden_at)
        everywhere = torch.cat([seen_at, hidden_at], dim=1)
        scales = self._drop_path(len(self.regressor), x, keys, "regressor")
        for i, block in enumerate(self.regressor):
            context = torch.cat([seen, x.to(seen.dtype)], dim=1)
            x = block.regress(x, hidden_at, context, everywhere, None if scales is None else scales[i])
        return self.regressor_norm(x)

    def _decode(self, x: Tensor, keys: Tensor | None) -> Tensor:
        """Logits [B, m, vocabulary] of predicted latents with positions, [B, m, dim]."""
        scales = self._drop_path(len(self.decoder), x, keys, "decoder")
        choose_attention(self.decoder, x)
        for i, block in enumerate(self.decoder):
            x = run_block(block, x, None, None if scales is None else scales[i])
        return self.head(self.decoder_norm(x))

    def _drop_path(self, depth: int, x: Tensor, keys: Tensor | None, what: str) -> Tensor | None:
        if not self.training:
            return None
        rates = torch.linspace(0, self.encoder.config["drop_path"], depth).tolist()
        return drop_path_scales(rates, x, keys, f"drop path/{what}")


class RegressorBlock(CrossBlock):
    """A cross-attention block of CAE: positions join queries and keys, and its norm stays on the tokens."""

    def regress(
        self, x: Tensor, at: Tensor, context: Tensor, context_at: Tensor, scales: Tensor | None = None
    ) -> Tensor:
        """[B, m, dim]. x: tokens [B, m, dim] and their positions; context: what they look at, [B, N, dim],
        and its positions; scales: of drop path, [2, B, 1, 1]."""
        assert self.norm_value is not None  # takes context_norm="separate"
        keys, values = self.norm_key(context + context_at), self.norm_value(context)
        attended = self.ls_cross(self.cross(self.norm_query(x + at), keys, values))
        x = self.norm_mlp(x + (attended if scales is None else scales[0] * attended))
        wide = self.ls_mlp(self.mlp(x))
        return x + (wide if scales is None else scales[1] * wide)
