"""Segmentation by softmax regression on patch tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch.nn import functional as F

from mimbench.outcomes import Overlaps
from mimbench.progress import Progress
from mimbench.protocol import Evaluation, Preset, Protocol, Surroundings
from mimbench.selection import Scores, select_and_test
from mimbench.spec import Readout
from protocols.parts.batches import at_hand
from protocols.parts.course import Course
from protocols.parts.fitted import Features, Fitted, Head, exact_standards
from protocols.parts.frozen import layers_at, standard
from protocols.parts.linear import LinearHeads
from protocols.parts.logistic import Fit as Optimum
from protocols.parts.logistic import Regression, Samples
from protocols.parts.patch_bank import Bank, bank_of
from protocols.parts.patches import Fit, Seen, figures, predicted, score, see

if TYPE_CHECKING:
    from mimbench.data import Dataset, Split
    from mimbench.encoder import Encoder

_Count = Annotated[int, Field(gt=0)]
_Positive = Annotated[float, Field(gt=0)]
_Share = Annotated[float, Field(gt=0, le=1)]

TOLERANCE = 1e-3  # of the gradient at an optimum, as a share of that at zero weights
ITERATIONS = 1000  # of L-BFGS at most, CAPI's


@dataclass(frozen=True)
class SegLinear(Protocol):
    """Every combination of layer, batch norm and learning rate is trained at once; validation chooses.

    Learns from what CAPI's logistic regression does (Darcet et al., 2025, arXiv:2502.08769): a sample is a
    patch token through the final norm, its label that of most of its pixels, patches of no class left out; by
    SGD with momentum on a half cosine, as the linear probe of images. Predicts as DINOv2's and DINOv3's
    linear heads do: logits go bilinearly to the annotation's own resolution. No dropout and no
    augmentation: tokens of frozen encoders are computed once. ``ade20k:dinov3-linear`` has both.
    """

    key = "seglinear"
    version = 1
    task = "segmentation"
    metric = "miou"
    summary = "softmax regression on frozen patch tokens; learning rate, layer and batch norm by validation"
    presets = {
        "capi": Preset(
            {
                "C": tuple(10 ** (-6 + 11 * i / 7) for i in range(8)),
                "layers": (1.0,),
                "upsampling": "nearest",
                "max_patches": None,
            },
            source=(
                "facebookresearch/capi eval_segmentation.py: L-BFGS under eight penalties, one chosen on a "
                "held-out tenth of train, fitted again to both, a prediction constant over the patch; there "
                "scored at 224 pixels, here at the annotation's resolution"
            ),
        ),
    }

    # Passes over the patches of train, of at least min_steps steps.
    epochs: _Positive = 10
    min_steps: _Count = 3000
    batch_size: _Count = 1024  # patches, of which neighbouring ones are alike
    # Of SGD, per 256 patches.
    lr: Annotated[tuple[_Positive, ...], Field(min_length=1)] = (0.0001, 0.001, 0.01, 0.1, 1.0)
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    # Shares of the depth. BEiT's features are best at 3/4 of it (microsoft/unilm, issue 419).
    layers: Annotated[tuple[_Share, ...], Field(min_length=1)] = (1.0, 0.75)
    batch_norm: Annotated[tuple[bool, ...], Field(min_length=1)] = (True,)
    # Where there are any: the optima under these penalties, found by L-BFGS, take the place of SGD.
    C: tuple[_Positive, ...] = ()
    upsampling: Literal["bilinear", "nearest"] = "bilinear"  # of logits, from patches to pixels
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
        read = partial(bank_of, encoder, layers=blocks, fit=self.fit, around=around, classes=classes)
        bank = read(split=data.train, limit=self.max_patches)
        if len(bank.labels) < bank.total:
            notes.append(f"{len(bank.labels)} of {bank.total} training patches, drawn at random")
        heads: _Heads = _Optima(self, bank, classes) if self.C else _ByGradient(self, bank, classes)
        grid, fitted = heads.fitted(layers, around)

        samples: dict[str, np.ndarray] = {}

        def overlaps(
            split: Split, wanted: Sequence[Fitted], kept: dict[str, np.ndarray] | None = None
        ) -> list[Overlaps]:
            used = list(dict.fromkeys(part.layer for head in wanted for part in head.weights))
            seen = see(encoder, split, used, self.fit, around, stage=f"segmenting {split.name} images")
            said = partial(_predictions, wanted, encoder, self.upsampling)
            return score(seen, said, classes, len(split), around.fabric, kept)

        def validate(split: Split) -> Scores:
            sound = [bool(head.bias.isfinite().all()) for head in fitted]
            usable = [head for head, is_sound in zip(fitted, sound, strict=True) if is_sound]
            found = iter(overlaps(split, usable) if usable else ())
            return Scores([next(found).score if is_sound else math.nan for is_sound in sound])

        def test(chosen: int, split: Split) -> Overlaps:
            also = partial(read, split=data.validation, limit=None)
            head = heads.final(grid[chosen], fitted[chosen], also)
            return overlaps(split, [head], samples)[0]

        selection, found = select_and_test(
            data,
            grid,
            validate,
            test,
            axes={"C" if self.C else "lr": (0, math.inf)},
            notes=notes,
            metric=self.metric,
        )
        metrics = {**figures(found), "validation_miou": selection.score}
        facts = {"patches": len(bank.majority)}
        return Evaluation(metrics, found, selection.content(), facts, samples=samples)


class _Heads:
    """Linear heads on the patches of train, all at once."""

    def __init__(self, protocol: SegLinear, bank: Bank, classes: int):
        self.protocol, self.bank, self.classes = protocol, bank, classes

    def fitted(
        self, layers: Mapping[float, int], around: Surroundings
    ) -> tuple[list[dict[str, Any]], list[Fitted]]:
        """What each candidate is, as JSON data, and the head itself. Each process fits them all."""
        raise NotImplementedError

    def final(self, candidate: Mapping[str, Any], head: Fitted, validation: Callable[[], Bank]) -> Fitted:
        """What of the chosen candidate is tested."""
        raise NotImplementedError


class _ByGradient(_Heads):
    """By SGD with momentum; the head is tested that was scored on validation."""

    def fitted(
        self, layers: Mapping[float, int], around: Surroundings
    ) -> tuple[list[dict[str, Any]], list[Fitted]]:
        protocol, size = self.protocol, self.protocol.batch_size
        train, labels = _features(self.bank), self.bank.majority
        grid = list(product(layers, protocol.batch_norm, protocol.lr))
        heads = [Head((_token(layers[share]),), lr * size / 256, norm) for share, norm, lr in grid]
        steps = max(protocol.min_steps, round(protocol.epochs * len(labels) / size))
        course = Course(steps, size, marks=(steps,))
        training = LinearHeads(
            heads,
            {part: tokens.shape[1] for part, tokens in train.items()},
            self.classes,
            momentum=protocol.momentum,
            standards=exact_standards(heads, train),
            device=labels.device,
        )
        batches = at_hand(train, labels, around.seed, course)
        for step, batch in enumerate(batches(0, steps)):
            training.learn(*batch, size, course.factor(step))
            if step % 64 == 0:
                around.report(Progress("training linear heads", step / steps))
        content = [{"layer": share, "batch_norm": norm, "lr": lr} for share, norm, lr in grid]
        return content, [training.fitted(head) for head in range(len(heads))]

    def final(self, candidate: Mapping[str, Any], head: Fitted, validation: Callable[[], Bank]) -> Fitted:
        return head


class _Optima(_Heads):
    """At the optimum of each penalty, from the strongest to the weakest; the chosen one is fitted again to
    train and validation together, as CAPI does."""

    def fitted(
        self, layers: Mapping[float, int], around: Surroundings
    ) -> tuple[list[dict[str, Any]], list[Fitted]]:
        self.layers = layers
        values = sorted(set(self.protocol.C))
        content: list[dict[str, Any]] = []
        found: list[Fitted] = []
        for share, layer in layers.items():
            model, optimum = self._model(layer, self.bank), None
            for C in values:
                around.report(Progress("fitting linear heads", len(found) / len(layers) / len(values)))
                optimum = model.fit(C, optimum, tolerance=TOLERANCE, max_iterations=ITERATIONS)
                content.append({"layer": share, "C": C})
                found.append(self._head(layer, model, optimum))
        return content, found

    def final(self, candidate: Mapping[str, Any], head: Fitted, validation: Callable[[], Bank]) -> Fitted:
        layer = self.layers[candidate["layer"]]
        model = self._model(layer, self.bank, validation())
        optimum = model.fit(candidate["C"], tolerance=TOLERANCE, max_iterations=ITERATIONS)
        return self._head(layer, model, optimum)

    def _model(self, layer: int, *banks: Bank) -> Regression:
        samples = [Samples((bank.tokens[layer],), bank.majority) for bank in banks]
        return Regression(samples, self.classes, [standard(self.bank.tokens[layer])], scaled=True)

    def _head(self, layer: int, model: Regression, optimum: Optimum) -> Fitted:
        device = self.bank.majority.device
        weight, bias = (torch.from_numpy(x).float().to(device) for x in (optimum.weight, optimum.bias))
        return Fitted({_token(layer): weight}, bias, {_token(layer): model.standards[0]})


def _token(layer: int) -> Readout:
    """The name under which linear heads know the patch tokens of a layer: each sample is one of them."""
    return Readout(layer=layer, token="mean")


def _features(bank: Bank) -> Features:
    return {_token(layer): tokens for layer, tokens in bank.tokens.items()}


def _predictions(
    heads: Sequence[Fitted], encoder: Encoder, upsampling: str, image: Seen
) -> Iterator[np.ndarray]:
    tokens = {_token(layer): found.flatten(0, 1) for layer, found in image.tokens.items()}
    side, grid = encoder.image_size, encoder.backbone.grid
    for head in heads:
        logits = head.logits(tokens).unflatten(0, (len(image.labels), *grid)).permute(0, 3, 1, 2)
        if upsampling == "nearest":
            logits = F.interpolate(logits, (side, side), mode="nearest")
        elif len(logits) > 1:  # squares that overlap meet pixel by pixel
            logits = F.interpolate(logits, (side, side), mode="bilinear", align_corners=False)
        yield predicted(logits, image.canvas, image.target.shape)
