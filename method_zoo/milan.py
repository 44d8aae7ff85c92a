"""MILAN: masked image pretraining on language assisted representation."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from method_zoo.backbones.blocks import LayerNorm
from method_zoo.backbones.initial import xavier_
from method_zoo.parts.attention_masks import AttentionMask
from method_zoo.parts.cross import CrossBlock
from method_zoo.parts.decoders import MaskTokens, decoder_size
from method_zoo.parts.images import Denormalise
from method_zoo.parts.losses import squared_error
from method_zoo.parts.masking import RandomMask
from method_zoo.parts.patches import take, where
from method_zoo.parts.targets import pixels_at
from mimbench.encoder import Backbone
from mimbench.method import Losses, Method, Step, Teacher
from mimbench.spec import Augmentation, Card, Classes, Readout, Recipe


class PromptingDecoder(nn.Module):
    """Decodes hidden tokens alone; the encoder's tokens are looked at in every block but stay as they are.

    A block is pre-norm; keys and values are the encoder's tokens without a norm and the hidden ones with.
    """

    def __init__(self, dim: int, depth: int, heads: int, out_features: int, mlp_ratio: float = 4.0):
        super().__init__()
        self.blocks = nn.ModuleList(
            CrossBlock(dim, heads, mlp_ratio=mlp_ratio, context_norm="none") for _ in range(depth)
        )
        self.norm = LayerNorm(dim)
        self.head = nn.Linear(dim, out_features)
        xavier_(self)

    def forward(self, visible: Tensor, hidden: Tensor) -> Tensor:
        """Predictions for both, visible tokens first: [B, n + m, out_features].

        visible: the encoder's tokens, [B, n, dim]; hidden: mask tokens, [B, m, dim].
        """
        for block in self.blocks:
            query = block.norm_query(hidden)
            hidden = hidden + block.cross(query, torch.cat([visible.to(query.dtype), query], dim=1))
            hidden = hidden + block.mlp(block.norm_mlp(hidden))
        return self.head(self.norm(torch.cat([visible.to(hidden.dtype), hidden], dim=1)))


class MILAN(Method):
    """MILAN (Hou et al., 2022, arXiv:2208.06049).

    The encoder sees the patches that a teacher's class token attends to. A prompting decoder, which
    leaves the encoder's tokens as they are, points every token in the direction of what the teacher makes
    of the whole image there.
    """

    card = Card(
        key="milan",
        name="MILAN",
        paper="MILAN: Masked Image Pretraining on Language Assisted Representation",
        authors="Hou, Sun, Chen, Xie, Kung",
        year=2022,
        arxiv="2208.06049",
        code="https://github.com/zejiangh/MILAN",
        scheme="reconstruction",
        masking="guided by a network: teacher attention",
        target="high level: teacher features",
        architecture="ViT encoder on visible patches, prompting decoder",
        objective="reconstruction (L2 of unit vectors)",
        classes=Classes(
            masking="network-guided",
            target="frozen teacher",
            architecture="plain transformer",
            objective="reconstruction",
        ),
        external="teacher",
        recipe=Recipe(
            base_lr=1.5e-4,
            lr_rule="per_256",
            batch_size=4096,
            betas=(0.9, 0.95),
            weight_decay=0.05,
            warmup=40 / 400,
            augmentation=Augmentation(crop_scale=(0.2, 1.0), interpolation="bicubic", flip=True),
            source="zejiangh/MILAN PRETRAIN.sh, ViT-B/16 on ImageNet-1K, 400 epochs",
        ),
        readout=Readout(token="cls"),
        backbone={"positions": "sincos", "init": "mae"},
        parity="verified",
        notes=(
            "The published teacher is CLIP ViT-B/16 with its projection; without a given one a teacher is "
            "trained first on the same data, and features are those after its final norm. As in the code, "
            "the loss is over all tokens, visible ones and the class token too. target=pixels is the code's "
            "run without CLIP: pixels of the hidden patches, for which masking=random asks the teacher "
            "nothing. The code's optional prototype loss, off in its commands, is left out. The decoder has "
            "the size MAE's has, in the published proportion to ViT-B."
        ),
    )
    needs = {"teacher": "ibot"}

    def __init__(
        self,
        backbone: Backbone,
        *,
        teacher: Teacher,
        mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75,
        masking: Literal["attention", "random"] = "attention",
        target: Literal["features", "pixels", "normalised_pixels"] = "features",
        decoder_dim: Annotated[int, Field(ge=4)] | None = None,
        decoder_depth: Annotated[int, Field(ge=1)] | None = None,
        decoder_heads: Annotated[int, Field(ge=1)] | None = None,
    ):
        super().__init__()
        self.encoder = backbone
        self.teacher, self.plain = teacher, Denormalise(self.card)
        self.masking = RandomMask(mask_ratio)
        self.attentive = AttentionMask(mask_ratio) if masking == "attention" else None
        self.masking.hidden_cells(backbone.grid)  # a ratio too small or large for the grid is found out now
        self.target = target
        dim, depth, heads = decoder_size(backbone, decoder_dim, decoder_depth, decoder_heads)
        self.mask_tokens = MaskTokens(backbone.embed_dim, dim, backbone.grid)
        out_features = teacher.embed_dim if target == "features" else 3 * backbone.patch_size**2
        mlp_ratio = backbone.config["mlp_ratio"]  # the code has one for encoder and decoder
        self.decoder = PromptingDecoder(dim, depth, heads, out_features, mlp_ratio)

    def forward(self, images: Tensor, step: Step) -> Losses:
        features = cls = None
        if self.attentive is not None or self.target == "features":
            with torch.no_grad():
                seen = self.teacher.encode(self.plain(images), attention=self.attentive is not None)
            features, cls = seen.patches, seen.cls
        if self.attentive is None:
            mask = self.masking(step.keys, self.encoder.grid)
        else:
            mask = self.attentive(step.keys, seen)
        return self.losses(images, mask, features, cls, step.keys)

    def losses(
        self,
        images: Tensor,
        mask: Tensor,
        features: Tensor | None = None,
        cls: Tensor | None = None,
        keys: Tensor | None = None,
    ) -> Losses:
        """Losses under a given mask, bool [B, N], True = hidden.

        features, cls: the teacher's patches [B, N, D], for pixel targets not needed, and class token [B, D].
        """
        hidden, visible = where(mask), where(~mask)
        encoded = self.encoder.encode(images, mask, fill="drop", keys=keys)
        tokens = self.mask_tokens(encoded, hidden)
        n_prompts = tokens.shape[1] - hidden.shape[1]
        predicted = self.decoder(tokens[:, :n_prompts], tokens[:, n_prompts:])
        if self.target != "features":
            norm = self.target == "normalised_pixels"
            target = pixels_at(images, hidden, self.encoder.patch_size, norm)
            return Losses(reconstruction=squared_error(predicted[:, n_prompts:], target).mean())

        assert features is not None
        order = torch.cat([visible, hidden], dim=1)
        target = take(features, order)
        if encoded.cls is not None and cls is not None:
            target = torch.cat([cls.unsqueeze(1), target], dim=1)
        predicted = predicted[:, -target.shape[1] :].to(images.dtype)
        similarity = F.cosine_similarity(predicted, target.to(images.dtype), dim=-1)
        return Losses(features=(2 - 2 * similarity).mean())
