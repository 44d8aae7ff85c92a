"""A vision transformer that reads an image's discrete tokens, with the tokenizer that gives them inside."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from method_zoo.backbones.blocks import LayerNorm
from method_zoo.backbones.dropout import dropout, run_dropping_block
from method_zoo.backbones.vit import ViT
from method_zoo.backbones.windows import Windows
from method_zoo.parts.frozen import Frozen
from method_zoo.parts.patches import take, where
from method_zoo.parts.tokenizers import build_tokenizer, describe, token_ids
from mimbench.encoder import Encoded
from mimbench.method import Tokenizer


class TokenViT(ViT):
    """The encoder of MAGE (Li et al., 2023, arXiv:2211.09117).

    A frozen tokenizer turns the image into one token a patch; the tokens' word embeddings and learned
    positions, normalised, are what the blocks get; two more words are the class token and the mask. Called
    like any other backbone: it takes images (not normalised, in [0, 1]: methods that use it have cards of
    mean 0 and standard deviation 1), hides patches on request and gives patch tokens. Its state holds the
    tokenizer's, so that one file has all.

    tokenizer: the tokenizer, or what ``parts.tokenizers.describe`` says of it (``config`` holds that; the
    weights then come with the state).
    dropout: rate while training, on embeddings and inside of blocks.
    """

    def __init__(
        self,
        *,
        tokenizer: Tokenizer | Mapping[str, Any],
        dropout: float = 0.1,
        **options: Any,
    ):
        super().__init__(**options)
        built: Any = build_tokenizer(tokenizer) if isinstance(tokenizer, Mapping) else tokenizer
        self.config |= {"tokenizer": describe(built), "dropout": dropout}
        self.dropout = dropout
        self.tokenizer = Frozen(tokenizer=built)
        self.vocabulary = int(built.vocabulary)
        self.class_word, self.mask_word = self.vocabulary, self.vocabulary + 1

        # Words take the place of pixels: of the embedding, the class token and the mask token.
        del self.patch_embed
        self.cls_token = self.mask_token = None
        self.words = nn.Embedding(self.vocabulary + 2, self.embed_dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid[0] * self.grid[1], self.embed_dim))
        self.embed_norm = LayerNorm(self.embed_dim)
        # MAGE multiplies its predictions, of variance 1, with the words. Published for widths of 768 and
        # 1024; narrower ones keep the scale that these products have there.
        std = 0.02 * max(1.0, math.sqrt(768 / self.embed_dim))
        for table in (self.words.weight, self.pos_embed):
            nn.init.normal_(table, std=std)

    def token_ids(self, images: Tensor) -> Tensor:
        """The image's tokens, int64 [B, N]. images: float [B, 3, S, S] in [0, 1]."""
        return token_ids(self.tokenizer["tokenizer"], images, self.grid)

    def embed(
        self,
        images: Tensor,
        mask: Tensor | None,
        fill: Literal["drop", "token"],
        edits: Mapping[int, Callable[[Tensor], Tensor]] = MappingProxyType({}),
        keys: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """As of any ViT; hidden patches that are there hold the mask word."""
        if 0 in edits:
            raise ValueError("words cannot be edited before their positions are added")
        ids = self.token_ids(images)
        return self._embed_ids(ids, mask if fill == "token" else None, mask if fill == "drop" else None)

    def encode_ids(
        self, ids: Tensor, hidden: Tensor, dropped: Tensor | None = None, keys: Tensor | None = None
    ) -> Encoded:
        """Tokens of images given as token ids, int64 [B, N]; class token and patches as of ``encode``.

        hidden: bool [B, N], what the mask word stands for. dropped: bool [B, N], what is left out, equally
        many in each row. keys: int64 [B], what dropout and drop path depend on.
        """
        return self.transform(*self._embed_ids(ids, hidden, dropped), keys=keys)

    def _embed_ids(
        self, ids: Tensor, hidden: Tensor | None, dropped: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        words = ids if hidden is None else ids.masked_fill(hidden, self.mask_word)
        words = F.pad(words, (1, 0), value=self.class_word)
        x = self.words(words) + self.pos_embed
        kept = tokens = None
        if dropped is not None:
            kept = where(~dropped)
            tokens = F.pad(kept + 1, (1, 0))
            x = take(x, tokens)
        return self.embed_norm(x), kept, tokens

    def transform(self, x: Tensor, *args: Any, keys: Tensor | None = None, **options: Any) -> Encoded:
        """See ``ViT.transform``."""
        if self.training:
            x = dropout(x, self.dropout, keys, "embedding")
        options["keys"] = keys
        return super().transform(x, *args, **options)

    def enter(self, images: Tensor, keys: Tensor | None) -> Tensor:
        """See ``Transformer``."""
        x = super().enter(images, keys)
        return dropout(x, self.dropout, keys, "embedding") if self.training else x

    def run_block(
        self,
        i: int,
        x: Tensor,
        place: Tensor | None,
        scales: Tensor | None,
        keys: Tensor | None,
        windows: Windows | None = None,
    ) -> Tensor:
        """The output of the i-th block on x [B, T, D], place being its attention's bias."""
        rate = self.dropout if self.training else 0.0
        return run_dropping_block(self.blocks[i], x, rate, keys, f"encoder/{i}", scales, place, windows)
