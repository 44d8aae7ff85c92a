"""dBOT: exploring target representations for masked autoencoders."""

from __future__ import annotations

from copy import deepcopy
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from method_zoo.parts.decoders import MaskTokens, TransformerDecoder, decoder_size
from method_zoo.parts.frozen import Frozen
from method_zoo.parts.images import Denormalise
from method_zoo.parts.masking import RandomMask
from method_zoo.parts.patches import take, where
from method_zoo.parts.targets import normalised
from mimbench.encoder import Backbone
from mimbench.errors import UserError
from mimbench.method import Losses, Method, Step, Teacher
from mimbench.registry import build_backbone
from mimbench.seeding import seeded_init
from mimbench.spec import Augmentation, Card, Classes, Readout, Recipe


class DBOT(Method):
    """Bootstrapped teachers for masked autoencoders (Liu et al., 2024, arXiv:2209.03917).

    A masked autoencoder predicts what a frozen teacher makes of the whole image. Training goes in stages:
    the first teacher is the student as it was initialised; at the end of a stage the student becomes the
    teacher and starts again from new random weights.
    """

    card = Card(
        key="dbot",
        name="dBOT",
        paper="Exploring Target Representations for Masked Autoencoders",
        authors="Liu, Zhou, Kong, Lin, Ji",
        year=2024,
        arxiv="2209.03917",
        code="https://github.com/liuxingbin/dbot",
        scheme="reconstruction",
        masking="random",
        target="high level: features of the previous stage's student",
        architecture="ViT encoder on visible patches, transformer decoder, staged teacher",
        objective="reconstruction (smooth L1)",
        classes=Classes(
            masking="random",
            target="frozen teacher",
            architecture="plain transformer",
            objective="reconstruction",
        ),
        recipe=Recipe(
            base_lr=1.5e-4,
            lr_rule="per_256",
            batch_size=4096,
            betas=(0.9, 0.95),
            weight_decay=0.05,
            warmup=40 / 1600,
            clip_grad=3.0,
            drop_path=0.2,
            augmentation=Augmentation(crop_scale=(0.2, 1.0), interpolation="bicubic", flip=True),
            source="liuxingbin/dbot, ViT-B/16 on ImageNet-1K, 1600 epochs in stages 0 800 1600",
        ),
        readout=Readout(token="mean"),
        backbone={"positions": "sincos", "init": "mae"},
        parity="verified",
        notes=(
            "The class token is predicted like a hidden patch. Targets come before the teacher's final norm "
            "(teacher_norm=true takes them after it), each normalised like MAE's patches. As in the code, "
            "optimiser and learning rate go on over the end of a stage; it takes effect after the first step "
            "that lies in the next one. The code keeps the bias of the patch embedding, here all weights are "
            "drawn anew. With a given teacher there is one stage, as in the published CLIP and DINO runs; "
            "those use another student (mask tokens in the encoder, negative cosine), which is not built "
            "here. The code drops paths in the decoder too, here only in the encoder."
        ),
    )
    needs = {"teacher": None}

    def __init__(
        self,
        backbone: Backbone,
        *,
        teacher: Teacher | None = None,
        mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75,
        stages: Annotated[int, Field(ge=1)] | None = None,
        teacher_norm: bool = False,
        norm_features: bool = True,
        beta: Annotated[float, Field(gt=0)] = 2.0,
        decoder_dim: Annotated[int, Field(ge=4)] | None = None,
        decoder_depth: Annotated[int, Field(ge=1)] | None = None,
        decoder_heads: Annotated[int, Field(ge=1)] | None = None,
    ):
        super().__init__()
        self.encoder = backbone
        self.masking = RandomMask(mask_ratio)
        self.masking.hidden_cells(backbone.grid)  # a ratio too small or large for the grid is found out now
        self.stages = stages or (2 if teacher is None else 1)
        self.teacher_norm, self.norm_features, self.beta = teacher_norm, norm_features, beta
        features = backbone.embed_dim if teacher is None else teacher.embed_dim
        if self.stages > 1 and features != backbone.embed_dim:
            raise UserError(
                f"a student {backbone.embed_dim} wide cannot take over from a teacher {features} wide; "
                "set stages=1 or choose a teacher of the same width"
            )
        size = decoder_size(backbone, decoder_dim, decoder_depth, decoder_heads)
        self._decoder_size = (*size, features)
        self.mask_tokens, self.decoder = self._new_decoder()

        self.teacher, self.plain = teacher, Denormalise(self.card)
        self.previous = None  # the student of the stage before
        if teacher is None or self.stages > 1:
            self.previous = Frozen(encoder=deepcopy(backbone))
        self.register_buffer("stage", torch.tensor(0))
        self.register_buffer("seed", torch.randint(2**62, ()))  # of later stages' weights

    def _new_decoder(self) -> tuple[MaskTokens, TransformerDecoder]:
        dim, depth, heads, features = self._decoder_size
        tokens = MaskTokens(self.encoder.embed_dim, dim, self.encoder.grid)
        return tokens, TransformerDecoder(dim, depth, heads, features)

    def forward(self, images: Tensor, step: Step) -> Losses:
        mask = self.masking(step.keys, self.encoder.grid)
        features, cls = self.features(images)
        return self.losses(images, mask, features, cls, step.keys)

    @torch.no_grad()
    def features(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the stage's teacher makes of normalised images: patches [B, N, D], class token [B, D]."""
        if self.teacher is not None and int(self.stage) == 0:
            seen = self.teacher.encode(self.plain(images), layers=(-1,))
        else:
            assert self.previous is not None
            seen = self.previous["encoder"].encode(images, layers=(-1,))
        cls, patches = (seen.cls, seen.patches) if self.teacher_norm else seen.layers[0]
        return patches, cls

    def losses(
        self,
        images: Tensor,
        mask: Tensor,
        features: Tensor,
        cls: Tensor | None = None,
        keys: Tensor | None = None,
    ) -> Losses:
        """Losses under a given mask, bool [B, N], True = hidden.

        features: the teacher's, [B, N, D]; cls: its class token, [B, D], None where it has none.
        """
        hidden = where(mask)
        encoded = self.encoder.encode(images, mask, fill="drop", keys=keys)
        tokens, target = self.mask_tokens(encoded, hidden), take(features, hidden)
        if encoded.cls is not None and cls is not None:
            tokens = tokens.roll(-1, dims=1)  # the class token, which is predicted too, goes to the end
            target = torch.cat([target, cls.unsqueeze(1)], dim=1)
        target = target.to(images.dtype)
        if self.norm_features:
            target = normalised(target)
        predicted = self.decoder(tokens, last=target.shape[1]).to(target.dtype)
        return Losses(features=F.smooth_l1_loss(predicted, target, beta=self.beta))

    def after_step(self, step: Step) -> None:
        stage = int(step.progress * self.stages)
        if stage > int(self.stage):
            self._begin(stage)

    @torch.no_grad()
    def _begin(self, stage: int) -> None:
        """The student becomes the teacher and gets new weights, the same in every process."""
        assert self.previous is not None
        _copy(self.previous["encoder"], self.encoder)
        with seeded_init(int(self.seed) + stage, "dbot"):
            encoder = build_backbone(**self.encoder.config)
            mask_tokens, decoder = self._new_decoder()
        for student, fresh in (
            (self.encoder, encoder),
            (self.mask_tokens, mask_tokens),
            (self.decoder, decoder),
        ):
            _copy(student, fresh)
        self.stage.fill_(stage)


def _copy(to: nn.Module, source: nn.Module) -> None:
    """Overwrite all parameters and buffers in place, so that the optimiser still holds them."""
    for old, new in zip(to.parameters(), source.parameters(), strict=True):
        old.copy_(new)
    for old, new in zip(to.buffers(), source.buffers(), strict=True):
        old.copy_(new)
