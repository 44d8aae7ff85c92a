"""Segmentation by softmax regression on patch tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from mimbench.outcomes import Overlaps
from mimbench.progress import Progress
from mimbench.protocol import Evaluation, Protocol, Surroundings
from mimbench.selection import Scores, select_and_test
from mimbench.spec import Readout
from protocols.parts.batches import at_hand
from protocols.parts.course import Course
from protocols.parts.fitted import Features, Fitted, Head, exact_standards
from protocols.parts.frozen import layers_at
from protocols.parts.linear import LinearHeads
from protocols.parts.patch_bank import bank_of
from protocols.parts.patches import Fit, Seen, figures, predicted, score, see

if TYPE_CHECKING:
    from mimbench.data import Dataset, Split
    from mimbench.encoder import Encoder

_Count = Annotated[int, Field(gt=0)]
_Positive = Annotated[float, Field(gt=0)]
_Share = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True)
class SegLinear(Protocol):
    """Every combination of layer, batch norm and learning rate is trained at once; validation chooses.

    Trained as CAPI's logistic regression is (Darcet et al., 2025, arXiv:2502.08769): a sample is a patch
    token through the final norm, its label that of most of its pixels, patches of no class left out; by
    SGD with momentum on a half cosine, as the linear probe of images. Predicts as DINOv2's and DINOv3's
    linear heads do: logits go bilinearly to the annotation's own resolution. No dropout and no
    augmentation: tokens of frozen encoders are computed once. ``ade20k:dinov3-linear`` has both.
    """

    key = "seglinear"
    version = 1
    task = "segmentation"
    metric = "miou"
    summary = "softmax regression on frozen patch tokens; learning rate, layer and batch norm by validation"

    # Passes over the patches of train, of at least min_steps steps.
    epochs: _Positive = 10
    min_steps: _Count = 3000
    batch_size: _Count = 1024  # patches, of which neighbouring ones are alike
    lr: Annotated[tuple[_Positive, ...], Field(min_length=1)] = (
        0.0001,
        0.001,
        0.01,
        0.1,
        1.0,
    )  # per 256 patches
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    # Shares of the depth. BEiT's features are best at 3/4 of it (microsoft/unilm, issue 419).
    layers: Annotated[tuple[_Share, ...], Field(min_length=1)] = (1.0, 0.75)
    batch_norm: Annotated[tuple[bool, ...], Field(min_length=1)] = (True,)
    fit: Fit = "squash"
    image_size: _Count | None = None  # of the encoder's input; None: as it was pre-trained
    # Of train, drawn at random where there are more; 2 layers of ViT-B take 3 GB. None: all of them.
    max_patches: _Count | None = 500_000

    @property
    def collective(self) -> bool:
        return True

    def evaluate(self, encoder: Encoder, data: Dataset, around: Surroundings) -> Evaluation:
        """Mean IoU of the head that validation chose."""
        self.check(data)
        assert data.classes is not None
        classes = len(data.classes)
        encoder = encoder.resized(self.image_size or encoder.image_size)
        layers, notes = layers_at(self.layers, encoder.depth)
        blocks = list(layers.values())
        bank = bank_of(encoder, data.train, blocks, self.fit, around, classes=classes, limit=self.max_patches)
        if len(bank.labels) < bank.total:
            notes.append(f"{len(bank.labels)} of {bank.total} training patches, drawn at random")
        train, labels = {_token(layer): tokens for layer, tokens in bank.tokens.items()}, bank.majority
        del bank
        grid = list(product(layers, self.batch_norm, self.lr))
        heads = [Head((_token(layers[share]),), lr * self.batch_size / 256, norm) for share, norm, lr in grid]
        fitted = self._trained(heads, train, labels, classes, around)

        def overlaps(split: Split, wanted: Sequence[int]) -> list[Overlaps]:
            used = list(dict.fromkeys(heads[i].parts[0].layer for i in wanted))
            seen = see(encoder, split, used, self.fit, around, stage=f"segmenting {split.name} images")
            said = partial(
                _predictions, [fitted[i] for i in wanted], encoder.backbone.grid, encoder.image_size
            )
            return score(seen, said, classes, len(split), around.fabric)

        def validate(split: Split) -> Scores:
            every = range(len(heads))
            sound = [i for i in every if fitted[i].bias.isfinite().all()]
            found = dict(zip(sound, overlaps(split, sound), strict=True)) if sound else {}
            return Scores([found[i].score if i in found else math.nan for i in every])

        def test(chosen: int, split: Split) -> Overlaps:
            return overlaps(split, [chosen])[0]

        selection, found = select_and_test(
            data,
            [{"layer": share, "batch_norm": norm, "lr": lr} for share, norm, lr in grid],
            validate,
            test,
            axes={"lr": (0, math.inf)},
            notes=notes,
            metric=self.metric,
        )
        metrics = {**figures(found), "validation_miou": selection.score}
        return Evaluation(metrics, found, selection.content(), {"patches": len(labels)})

    def _trained(
        self, heads: Sequence[Head], train: Features, labels: Tensor, classes: int, around: Surroundings
    ) -> list[Fitted]:
        """All heads, trained on the same batches; each process trains them all."""
        steps = max(self.min_steps, round(self.epochs * len(labels) / self.batch_size))
        course = Course(steps, self.batch_size, marks=(steps,))
        training = LinearHeads(
            heads,
            {part: tokens.shape[1] for part, tokens in train.items()},
            classes,
            momentum=self.momentum,
            standards=exact_standards(heads, train),
            device=labels.device,
        )
        batches = at_hand(train, labels, around.seed, course)
        for step, batch in enumerate(batches(0, steps)):
            training.learn(*batch, self.batch_size, course.factor(step))
            if step % 64 == 0:
                around.report(Progress("training linear heads", step / steps))
        return [training.fitted(head) for head in range(len(heads))]


def _token(layer: int) -> Readout:
    """The name under which linear heads know the patch tokens of a layer: each sample is one of them."""
    return Readout(layer=layer, token="mean")


def _predictions(
    heads: Sequence[Fitted], grid: tuple[int, int], side: int, image: Seen
) -> Iterator[np.ndarray]:
    tokens: dict[Readout, Tensor] = {
        _token(layer): found.flatten(0, 1) for layer, found in image.tokens.items()
    }
    for head in heads:
        logits = head.logits(tokens).unflatten(0, (len(image.labels), *grid)).permute(0, 3, 1, 2)
        if len(logits) > 1:  # squares that overlap meet pixel by pixel
            logits = F.interpolate(logits, (side, side), mode="bilinear", align_corners=False)
        yield predicted(logits, image.canvas, image.target.shape)
