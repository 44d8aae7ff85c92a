"""N-JEPA: improving joint embedding predictive architecture with diffusion noise."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from method_zoo.ijepa import IJEPA, Momentum, Share, Size
from method_zoo.parts.ema import HandOn
from mimbench import rng
from mimbench.encoder import Backbone
from mimbench.method import Losses, Step
from mimbench.spec import Card, Classes


class NJEPA(IJEPA):
    """Noise-based joint-embedding predictive architecture (Qiu, Zhu & Chen, 2025, arXiv:2507.15216).

    I-JEPA whose mask tokens are told their positions under Gaussian noise, of another level for each
    target block, so that features are predicted from an uncertain place, too.
    """

    card = Card(
        key="njepa",
        name="N-JEPA",
        paper="Improving Joint Embedding Predictive Architecture with Diffusion Noise",
        authors="Qiu, Zhu, Chen",
        year=2025,
        arxiv="2507.15216",
        scheme=IJEPA.card.scheme,
        masking=IJEPA.card.masking,
        target=IJEPA.card.target,
        architecture=IJEPA.card.architecture,
        objective="regression of features, from positions without and with diffusion noise (smooth L1)",
        classes=Classes(
            masking="random",
            target="trained teacher",
            architecture="plain transformer",
            objective="reconstruction",
        ),
        recipe=IJEPA.card.recipe,
        readout=IJEPA.card.readout,
        backbone=IJEPA.card.backbone,
        parity="own formulas",
        notes=(
            "There is no official code, and of the paper only the abstract was at hand: diffusion noise of "
            "several levels on the position embeddings of the masked tokens, as an augmentation of I-JEPA. "
            "How it is drawn and weighted is this implementation's choice: the level of each target block "
            "of each image is log-normal with the constants of EDM (arXiv:2206.00364, table 1), each "
            "token's noise its own, and the loss under noise is added to I-JEPA's with equal weight "
            "(noise_weight). Tables mark the row. Recipe, blocks and predictor are I-JEPA's; see there."
        ),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        hand_on: HandOn = "average",
        noise_mean: float = -1.2,
        noise_std: Annotated[float, Field(ge=0)] = 1.2,
        noise_weight: Annotated[float, Field(gt=0)] = 1.0,
        target_blocks: Size = 4,
        target_scale: Share = 0.15,
        target_spread: Annotated[float, Field(ge=0, lt=1)] = 0.05,
        context_blocks: Size = 1,
        context_scale: Annotated[float, Field(gt=0, le=0.85)] = 0.85,
        min_context: Annotated[float, Field(ge=0, lt=1)] = 10 / 196,
        whole_grid: bool = True,
        loss: Literal["smooth_l1", "l2"] = "smooth_l1",
        predictor_dim: Annotated[int, Field(ge=4)] | None = None,
        predictor_depth: Size | None = None,
        predictor_heads: Size | None = None,
        momentum_start: Momentum = 0.996,
        momentum_end: Momentum = 1.0,
    ):
        super().__init__(
            backbone,
            hand_on=hand_on,
            target_blocks=target_blocks,
            target_scale=target_scale,
            target_spread=target_spread,
            context_blocks=context_blocks,
            context_scale=context_scale,
            min_context=min_context,
            whole_grid=whole_grid,
            loss=loss,
            predictor_dim=predictor_dim,
            predictor_depth=predictor_depth,
            predictor_heads=predictor_heads,
            momentum_start=momentum_start,
            momentum_end=momentum_end,
        )
        self.noise_mean, self.noise_std, self.noise_weight = noise_mean, noise_std, noise_weight

    def forward(self, images: Tensor, step: Step) -> Losses:
        blocks = self.masking(step.keys, self.encoder.grid, step.progress)
        noise = self.noise(step.keys, blocks.targets)
        return self.noised_losses(images, blocks.contexts, blocks.targets, noise, step.keys)

    def noise(self, keys: Tensor, targets: Tensor) -> Tensor:
        """Noise for the mask tokens of target blocks, int64 [T, B, m]: [T, B, m, width of the predictor]."""
        blocks, batch, m = targets.shape
        width = self.mask_tokens.mask_token.shape[-1]
        level = (self.noise_mean + self.noise_std * rng.normal(keys, blocks, "noise level")).exp()
        noise = rng.normal(keys, blocks * m * width, "noise").view(batch, blocks, m, width)
        return (level[:, :, None, None] * noise).transpose(0, 1)

    def noised_losses(
        self, images: Tensor, contexts: Tensor, targets: Tensor, noise: Tensor, keys: Tensor | None = None
    ) -> Losses:
        """Losses under given blocks, as I-JEPA's, and given noise, [T, B, m, width of the predictor]."""
        target = self.target(images, targets)
        noise = noise.flatten(0, 1)
        plain, noised = [], []
        for context in contexts:
            seen = self.seen(images, context, keys)
            plain.append(self.distance(self.predict(seen, targets), target))
            noised.append(self.distance(self.predict(seen, targets, noise), target))
        return Losses(
            features=torch.stack(plain).mean(),
            features_under_noise=self.noise_weight * torch.stack(noised).mean(),
        )
