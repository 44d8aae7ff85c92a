"""What end-to-end fine-tuning adds to an encoder while it trains: mixing, erasing, smoothing, averaging."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import mimbench.torchvision_compat  # noqa: F401  isort: skip
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.utils import ModelEmaV3

from mimbench.seeding import seeded_init, seeded_python
from mimbench.trainee import Losses, Partners, Step, Trainee
from protocols.parts.classifier import Classifier

_POSITIVE = (1 << 63) - 1


@dataclass(frozen=True)
class Regularisation:
    """What keeps fine-tuning from learning images by heart.

    mixup, cutmix: parameters of the Beta distributions (arXiv:1710.09412, arXiv:1905.04899); 0: none.
    mix_probability: that a batch is mixed. switch: that it is by cutmix where both are on.
    smoothing: of labels (arXiv:1512.00567). erasing: probability of an erased rectangle (arXiv:1708.04896).
    """

    mixup: float
    cutmix: float
    mix_probability: float
    switch: float
    smoothing: float
    erasing: float


class FineTuning(Trainee):
    """A classifier in training, by timm's pieces.

    timm draws from global generators. Here they are seeded: for erasing by each image's key, for mixing by
    the step's, so that one process and several do the same to every image, in one go or resumed. A batch is
    mixed with itself in reverse order, as timm does, the whole step being the batch.

    average: decay of the moving average of the weights that is then evaluated (timm's ``ModelEmaV3``, which
    grows to it as 1 - (1 + step) ** -2/3, so that a short run does not average in its beginning); None: none.
    """

    def __init__(
        self,
        classifier: Classifier,
        how: Regularisation,
        *,
        layer_decay: float,
        average: float | None,
    ):
        super().__init__()
        self.classifier, self.layer_decay = classifier, layer_decay
        self.mixing: Mixup | None = None
        if how.mixup > 0 or how.cutmix > 0:
            self.mixing = Mixup(
                how.mixup,
                how.cutmix,
                prob=how.mix_probability,
                switch_prob=how.switch,
                label_smoothing=how.smoothing,
                num_classes=classifier.head.out_features,
            )
        self.partnered = self.mixing is not None
        self.erasing = RandomErasing(how.erasing, mode="pixel") if how.erasing > 0 else None
        self.loss: nn.Module
        if self.mixing is not None:
            self.loss = SoftTargetCrossEntropy()
        else:
            self.loss = LabelSmoothingCrossEntropy(how.smoothing) if how.smoothing else nn.CrossEntropyLoss()
        self.average: ModelEmaV3 | None = None
        if average is not None:
            self.average = ModelEmaV3(classifier, average, use_warmup=True)
            self.average.requires_grad_(False)
        self.updates = 0

    @property
    def encoder(self) -> nn.Module:  # type: ignore[override]
        """The backbone."""
        return self.classifier.backbone

    @property
    def normalisation(self) -> tuple[Sequence[float], Sequence[float]]:
        """The encoder's own."""
        return self.classifier.mean.flatten().tolist(), self.classifier.std.flatten().tolist()

    @property
    def labelled(self) -> bool:
        """It learns from labels."""
        return True

    @property
    def evaluated(self) -> Classifier:
        """What is to be evaluated: the average where there is one."""
        return self.classifier if self.average is None else self.average.module

    def forward(self, images: Tensor, step: Step) -> Losses:
        """The loss of one batch. images: float [B, 3, H, W], normalised."""
        assert step.labels is not None
        images, targets = self._erased(images, step.keys), step.labels
        if self.mixing is not None:
            assert step.partners is not None
            images, targets = self._mixed(images, step.labels, step.partners, step.key)
        return Losses(labels=self.loss(self.classifier(images, step.keys), targets))

    def _erased(self, images: Tensor, keys: Tensor) -> Tensor:
        if self.erasing is None:
            return images
        self.erasing.device = images.device
        images = images.clone()
        with seeded_python(0), seeded_init(0):
            for image, key in zip(images, keys.tolist(), strict=True):
                random.seed(key & _POSITIVE)
                _seed(images.device, key & _POSITIVE)
                self.erasing(image)
        return images

    def _mixed(self, images: Tensor, labels: Tensor, partners: Partners, key: int) -> tuple[Tensor, Tensor]:
        """Images and their targets [B, classes], mixed with their partners.

        timm mixes a batch with itself reversed: so the partners follow in reverse order, and the first half
        of what comes out is ours.
        """
        assert self.mixing is not None
        assert partners.labels is not None
        others = self._erased(partners.images, partners.keys)
        both = torch.cat([images, others.flip(0)])
        with seeded_python(key):
            mixed, targets = self.mixing(both, torch.cat([labels, partners.labels.flip(0)]))
        return mixed[: len(images)], targets[: len(images)]

    def after_step(self, step: Step) -> None:
        """Move the average along."""
        self.updates += 1
        if self.average is not None:
            self.average.update(self.classifier, step=self.updates)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """The classifier's, with layer-wise decay."""
        return self.classifier.parameter_groups(weight_decay, self.layer_decay)

    def get_extra_state(self) -> dict[str, int]:
        """How far the average's warm-up is."""
        return {"updates": self.updates}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Go on from ``get_extra_state``."""
        self.updates = state["updates"]


def _seed(device: torch.device, key: int) -> None:
    """Seed the generator that draws on ``device``."""
    if device.type == "cpu":  # torch.manual_seed visits all kinds of devices: milliseconds where they sleep
        torch.default_generator.manual_seed(key)
    else:
        torch.manual_seed(key)
