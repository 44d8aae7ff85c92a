"""MAGE: masked generative encoder, which reads and predicts an image's tokens."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from method_zoo.parts.decoders import TransformerDecoder, decoder_size
from method_zoo.parts.masking import Masked, VaryingMask
from mimbench.encoder import Backbone, Encoded
from mimbench.method import Losses, Method, Step, Tokenizer
from mimbench.registry import build_backbone
from mimbench.spec import Augmentation, Card, Classes, Readout, Recipe

Share = Annotated[float, Field(gt=0, le=1)]


class MAGE(Method):
    """Masked generative encoder (Li et al., 2023, arXiv:2211.09117).

    A tokenizer turns the image into discrete tokens. A share of them, another one for each image, is
    replaced by a mask word; as many as are always masked are left out of the encoder. A decoder of the
    encoder's width, which gets the encoder's class token wherever a token is masked, tells them.
    """

    card = Card(
        key="mage",
        name="MAGE",
        paper="MAGE: MAsked Generative Encoder to Unify Representation Learning and Image Synthesis",
        authors="Li, Chang, Mishra, Zhang, Katabi, Krishnan",
        year=2023,
        arxiv="2211.09117",
        code="https://github.com/LTH14/mage",
        scheme="reconstruction",
        masking="random, of varying share",
        target="low level: discrete tokens, which are the input too",
        architecture="ViT encoder on visible tokens, transformer decoder",
        objective="classification (cross-entropy over the vocabulary)",
        classes=Classes(
            masking="random",
            target="tokens",
            architecture="plain transformer",
            objective="classification",
        ),
        external="tokenizer",
        recipe=Recipe(
            base_lr=1.5e-4,
            lr_rule="per_256",
            batch_size=4096,
            betas=(0.9, 0.95),
            weight_decay=0.05,
            warmup=40 / 1600,
            clip_grad=3.0,
            augmentation=Augmentation(crop_scale=(0.2, 1.0), interpolation="bilinear", flip=True),
            source="LTH14/mage README and main_pretrain.py, ViT-B on ImageNet-1K, 1600 epochs",
        ),
        readout=Readout(token="mean"),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        backbone={"positions": "none", "init": "mae"},
        parity="verified",
        notes=(
            "The published tokenizer is a VQGAN (1024 codes, 16 x 16 tokens of 256 pixels) trained on "
            "ImageNet; here one is trained on the same data and its cost counted. It is part of the encoder, "
            "which sees nothing but tokens, in evaluations too. MAGE-C, which adds a contrastive loss, was "
            "not released and is left out. As in the code, masked places are filled with the encoder's class "
            "token in the decoder, the loss is over all masked tokens, and the prediction's product with the "
            "word embeddings does not train these. The code also holds words for 1000 classes, of which one "
            "is ever read; that one is here. It draws one share of masked tokens for a batch; here each "
            "image draws its own, and the loss is averaged over images. Dropout is the code's; its draws "
            "come from the samples' keys. The decoder has the encoder's width and heads and 2/3 of its "
            "depth, 8 at most, as published for ViT-B and L."
        ),
    )
    needs = {"tokenizer": "vqvae"}

    def __init__(
        self,
        backbone: Backbone,
        *,
        tokenizer: Tokenizer,
        mask_ratio_mean: Annotated[float, Field(ge=0, le=1)] = 0.55,
        mask_ratio_std: Annotated[float, Field(gt=0)] = 0.25,
        mask_ratio_min: Share = 0.5,
        mask_ratio_max: Share = 1.0,
        label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        decoder_dim: Annotated[int, Field(ge=4)] | None = None,
        decoder_depth: Annotated[int, Field(ge=1)] | None = None,
        decoder_heads: Annotated[int, Field(ge=1)] | None = None,
    ):
        super().__init__()
        options = {"tokenizer": tokenizer, "dropout": dropout}
        self.encoder = build_backbone(**{**backbone.config, **options})
        self.masking = VaryingMask(mask_ratio_mean, mask_ratio_std, mask_ratio_min, mask_ratio_max)
        self.masking.n_dropped(backbone.grid)  # shares that leave nothing are found out now
        self.label_smoothing = label_smoothing

        width, config = backbone.embed_dim, backbone.config
        heads = decoder_heads or (None if decoder_dim else config["num_heads"])
        dim, depth, heads = decoder_size(backbone, decoder_dim or width, decoder_depth, heads)
        self.decoder_embed = nn.Linear(width, dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + backbone.grid[0] * backbone.grid[1], dim))
        self.decoder = TransformerDecoder(dim, depth, heads, width, config["mlp_ratio"], dropout)
        # The norm has torch's own epsilon, as in the code.
        self.to_words = nn.Sequential(nn.GELU(), nn.LayerNorm(width))
        self.bias = nn.Parameter(torch.zeros(tokenizer.vocabulary))
        nn.init.xavier_uniform_(self.decoder_embed.weight)
        nn.init.zeros_(self.decoder_embed.bias)
        nn.init.normal_(self.pos_embed, std=0.02)

    def forward(self, images: Tensor, step: Step) -> Losses:
        mask = self.masking(step.keys, self.encoder.grid)
        loss = self.losses(self.encoder.token_ids(images), mask, step.keys)
        return Losses({name: term.to(images.dtype) for name, term in loss.items()})

    def losses(self, ids: Tensor, mask: Masked, keys: Tensor | None = None) -> Losses:
        """Losses of images given as token ids, int64 [B, N], under a given mask."""
        hidden = mask.hidden
        predicted = self._predict(self.encoder.encode_ids(ids, hidden, mask.dropped, keys), hidden, keys)
        words = self.encoder.words.weight[: self.encoder.vocabulary].detach()
        logits = predicted[hidden] @ words.T + self.bias
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        loss = F.cross_entropy(logits, ids[hidden], reduction="none", label_smoothing=self.label_smoothing)
        counts = hidden.sum(1, keepdim=True).expand_as(hidden)[hidden]  # of the image each token is of
        return Losses(tokens=(loss / counts).sum() / len(ids))

    def _predict(self, encoded: Encoded, hidden: Tensor, keys: Tensor | None) -> Tensor:
        """What the decoder says of each place, in the width of word embeddings: [B, N, D]."""
        assert encoded.cls is not None
        assert encoded.kept is not None
        cls, visible = self.decoder_embed(encoded.cls).unsqueeze(1), self.decoder_embed(encoded.patches)
        filled = cls.expand(-1, hidden.shape[1], -1)
        index = encoded.kept.unsqueeze(-1).expand_as(visible)
        filled = torch.where(hidden.unsqueeze(-1), filled, filled.scatter(1, index, visible))
        tokens = torch.cat([cls, filled], dim=1) + self.pos_embed
        return self.to_words(self.decoder(tokens, last=hidden.shape[1], keys=keys))
