"""VQ-KD: a discrete tokenizer distilled from a teacher's features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from method_zoo.backbones.initial import truncated_normal_
from method_zoo.parts.decoders import TransformerDecoder
from method_zoo.parts.frozen import Borrowed
from method_zoo.parts.images import Denormalise, resize_to
from method_zoo.parts.tokenizers.vq import SphericalCodebook
from mimbench import rng
from mimbench.encoder import Backbone
from mimbench.method import Losses, Method, Step, Teacher
from mimbench.registry import build_backbone
from mimbench.spec import HALF, Augmentation, Card, Classes, Recipe


class VQKD(Method):
    """Vector-quantised knowledge distillation (Peng et al., 2022, arXiv:2208.06366).

    The tokenizer of BEiT v2. An encoder gives one vector a patch, a codebook on the unit sphere replaces
    each by its nearest code, and a shallow decoder tells the teacher's features from the codes alone.
    Which code a patch got is its token, which so speaks of what the teacher sees there, not of colours.
    """

    card = Card(
        key="vqkd",
        name="VQ-KD",
        paper="BEiT v2: Masked Image Modeling with Vector-Quantized Visual Tokenizers",
        authors="Peng, Dong, Bao, Ye, Wei",
        year=2022,
        arxiv="2208.06366",
        code="https://github.com/microsoft/unilm/tree/master/beit2",
        role="tokenizer",
        scheme="reconstruction",
        masking="none",
        target="high level, frozen teacher: features",
        architecture="ViT encoder and shallow transformer decoder around a codebook",
        objective="reconstruction (cosine) and commitment",
        classes=Classes(
            masking="none",
            target="frozen teacher",
            architecture="plain transformer",
            objective="reconstruction + other",
        ),
        external="teacher",
        recipe=Recipe(
            base_lr=2e-4,
            lr_rule="absolute",
            batch_size=512,
            betas=(0.9, 0.99),
            weight_decay=1e-4,
            warmup=10 / 100,
            min_lr=1e-5,
            augmentation=Augmentation(crop_scale=(0.08, 1.0), interpolation="bicubic", flip=True),
            source=(
                "microsoft/unilm beit2/TOKENIZER.md, ImageNet-1K, 100 epochs; the rate is the code's default "
                "of 5e-5 a 128 images"
            ),
        ),
        mean=HALF,
        std=HALF,
        backbone={"positions": "learned", "qkv_bias": "query_value", "init": "beit"},
        parity="baseline",
        notes=(
            "The encoder has the size of the backbone that is compared, as in the paper, where both are "
            "ViT-B. The published teacher is CLIP; the target is what the teacher's patches are after its "
            "final norm. The code starts its codebook with k-means of the first batch; here each code starts "
            "on a vector of the first step, and one that nothing was nearest to for 16 steps moves to "
            "another, without which short runs use few codes. The decoder's 3 of 12 blocks keep their "
            "proportion. Images whose grid is not the encoder's are encoded on its own, and the vectors "
            "interpolated before they are quantised."
        ),
    )
    needs = {"teacher": "ibot"}

    def __init__(
        self,
        backbone: Backbone,
        *,
        teacher: Teacher,
        vocabulary: Annotated[int, Field(ge=2)] = 8192,
        dim: Annotated[int, Field(ge=2)] = 32,
        decoder_depth: Annotated[int, Field(ge=1)] | None = None,
        commitment: Annotated[float, Field(gt=0)] = 1.0,
        decay: Annotated[float, Field(ge=0, lt=1)] = 0.99,
    ):
        super().__init__()
        self.vocabulary, self.commitment = vocabulary, commitment
        self.teacher = Borrowed(cast(nn.Module, teacher))
        self.denormalise = Denormalise(self.card)
        self.config: dict[str, Any] = {
            "backbone": backbone.config,
            "features": teacher.embed_dim,
            "vocabulary": vocabulary,
            "dim": dim,
            "decoder_depth": decoder_depth,
            "commitment": commitment,
            "decay": decay,
        }
        width, n_patches = backbone.embed_dim, backbone.grid[0] * backbone.grid[1]
        self.encoder = backbone
        self.to_codes = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, dim))
        self.codebook = SphericalCodebook(vocabulary, dim, decay)
        self.from_codes = nn.Linear(dim, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + n_patches, width))
        depth = decoder_depth or max(1, round(backbone.depth * 3 / 12))
        self.decoder = TransformerDecoder(width, depth, backbone.config["num_heads"], width)
        self.to_features = nn.Sequential(nn.Tanh(), nn.Linear(width, teacher.embed_dim))
        for part in (self.to_codes, self.from_codes, self.decoder, self.to_features):
            truncated_normal_(part)
        for parameter in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(parameter, std=0.02)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> VQKD:
        """The tokenizer that ``config`` describes, freshly initialised and without a teacher, which ids do
        not need; for loading weights."""
        settings = dict(config)
        backbone = build_backbone(**settings.pop("backbone"))
        return cls(backbone, teacher=_Absent(settings.pop("features")), **settings)

    def forward(self, images: Tensor, step: Step) -> Losses:
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            target = self.teacher().encode(self.denormalise(images)).patches
        return self.losses(images, target, step.keys)

    def losses(self, images: Tensor, target: Tensor, keys: Tensor) -> Losses:
        """Losses under given teacher features, float [B, N, F]."""
        vectors = self._vectors(images, keys)  # [B, N, dim]
        scores = rng.uniform(keys, vectors.shape[1], "vqkd/idle codes")
        found = self.codebook(vectors.flatten(0, 1), scores.flatten())
        codes = self.from_codes(found.codes.to(vectors.dtype).view(vectors.shape))
        tokens = torch.cat([self.cls_token.expand(len(codes), -1, -1), codes], dim=1) + self.pos_embed
        told = self.to_features(self.decoder(tokens, last=codes.shape[1]))
        similarity = F.cosine_similarity(told.to(images.dtype), target, dim=-1)
        return Losses(
            features=(1 - similarity).mean(), commitment=self.commitment * found.commitment.to(images.dtype)
        )

    def _vectors(self, images: Tensor, keys: Tensor | None = None) -> Tensor:
        """What is quantised of normalised images: [B, N, dim], float32 at least."""
        patches = self.encoder.encode(images, keys=keys).patches
        with torch.autocast(images.device.type, enabled=False):
            return self.to_codes(patches.to(self.to_codes[0].weight.dtype))

    def after_step(self, step: Step) -> None:
        self.codebook.update()

    def description(self) -> dict[str, Any]:
        """Perplexity of the codes over the last steps: how many are in use, weighted by how often."""
        return {"perplexity": self.codebook.perplexity()}

    @torch.no_grad()
    def ids(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """Token ids, int64 [B, H, W] on ``grid``. images: float [B, 3, S, S] in [0, 1], resized to fit."""
        training = self.encoder.training
        self.encoder.eval()  # without drop path: an image has one answer
        with torch.autocast(images.device.type, enabled=False):
            own = self.encoder.grid
            images = resize_to(images.float(), own, self.encoder.patch_size)
            vectors = self._vectors((images - self.denormalise.mean) / self.denormalise.std)
            vectors = vectors.transpose(1, 2).unflatten(2, own)  # [B, dim, H, W]
            if grid != own:
                vectors = F.interpolate(vectors, grid, mode="bilinear", antialias=True)
            ids = self.codebook.nearest(vectors.permute(0, 2, 3, 1).flatten(0, 2))
        self.encoder.train(training)
        return ids.view(len(images), *grid)


class _Absent(nn.Module):
    """Stands where the teacher was, whose features had ``embed_dim`` numbers."""

    def __init__(self, embed_dim: int):
        super().__init__()
        self.embed_dim = embed_dim
