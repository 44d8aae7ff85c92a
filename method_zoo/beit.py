"""BEiT: BERT pre-training of image transformers."""

from __future__ import annotations

from typing import Annotated, cast

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from method_zoo.backbones.initial import truncated_normal_
from method_zoo.parts.frozen import Frozen
from method_zoo.parts.images import Denormalise
from method_zoo.parts.masking import BlockMask
from method_zoo.parts.tokenizers import token_ids
from mimbench.encoder import Backbone
from mimbench.method import Losses, Method, Step, Tokenizer
from mimbench.spec import Augmentation, Card, Classes, Readout, Recipe


class BEiT(Method):
    """BEiT (Bao et al., 2022, arXiv:2106.08254).

    A tokenizer turns the image into one discrete token a patch; blocks of patches become a mask token in
    the encoder's input, and a linear layer on its output tells the tokens at the hidden places.
    """

    card = Card(
        key="beit",
        name="BEiT",
        paper="BEiT: BERT Pre-Training of Image Transformers",
        authors="Bao, Dong, Piao, Wei",
        year=2022,
        arxiv="2106.08254",
        code="https://github.com/microsoft/unilm/tree/master/beit",
        scheme="reconstruction",
        masking="block",
        target="low level: discrete tokens",
        architecture="ViT encoder with mask tokens, linear head",
        objective="classification (cross-entropy over the vocabulary)",
        classes=Classes(
            masking="random",
            target="tokens",
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
            warmup=10 / 800,
            warmup_start_lr=1e-6,
            min_lr=1e-5,
            clip_grad=3.0,
            drop_path=0.1,
            augmentation=Augmentation(
                crop_scale=(0.08, 1.0), interpolation="bicubic", flip=True, color_jitter=0.4
            ),
            source="microsoft/unilm beit/README.md, BEiT-B on ImageNet-1K, 800 epochs; betas from the paper",
        ),
        readout=Readout(token="mean"),
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
            "The paper's tokenizer is OpenAI's dVAE (8192 tokens) on a second, 112-pixel view of the same "
            "crop; here the tokenizer gets the training image and brings it to the size it needs. Without "
            "given dVAE weights a tokenizer is trained on the same data and its cost counted. The paper "
            "hides at most 40 percent, the code 75 of 196 patches; mask_ratio and min_block keep the code's"
            " shares on other grids. Block masks may hide a few patches fewer, as the code's do. The "
            "released weights were trained on ImageNet-22K with mean and standard deviation 0.5. Large "
            "models are published with a layer scale of 1e-5."
        ),
    )
    needs = {"tokenizer": "vqvae"}

    def __init__(
        self,
        backbone: Backbone,
        *,
        tokenizer: Tokenizer,
        mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 75 / 196,
        min_block: Annotated[float, Field(gt=0, lt=1)] = 16 / 196,
    ):
        super().__init__()
        self.encoder = backbone
        self.tokenizer = Frozen(tokenizer=cast(nn.Module, tokenizer))
        n_patches = backbone.grid[0] * backbone.grid[1]
        self.masking = BlockMask(ratio=mask_ratio, min_block=max(1, round(min_block * n_patches)))
        self.masking.n_hidden(backbone.grid)  # a ratio too small or large for the grid is found out now
        self.head = nn.Linear(backbone.embed_dim, tokenizer.vocabulary)
        truncated_normal_(self.head)
        self.denormalise = Denormalise(self.card)

    def forward(self, images: Tensor, step: Step) -> Losses:
        mask = self.masking(step.keys, self.encoder.grid)
        ids = token_ids(self.tokenizer["tokenizer"], self.denormalise(images), self.encoder.grid)
        return self.losses(images, mask, ids, step.keys)

    def losses(self, images: Tensor, mask: Tensor, ids: Tensor, keys: Tensor | None = None) -> Losses:
        """Losses under a given mask, bool [B, N], True = hidden, and given tokens, int64 [B, N]."""
        encoded = self.encoder.encode(images, mask, fill="token", keys=keys)
        logits = self.head(encoded.patches[mask]).to(images.dtype)
        return Losses(tokens=F.cross_entropy(logits, ids[mask]))
