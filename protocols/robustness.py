"""Robustness: how a classifier of clean images does on corrupted ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, cast

import numpy as np
from pydantic import Field

from mimbench.outcomes import Values
from mimbench.protocol import Evaluation, Preset, Protocol, Surroundings
from protocols.parts.corruptions import (
    COMMON,
    SEVERITIES,
    Corrupted,
    Corruption,
    Corruptions,
    corrupted,
    library_version,
)
from protocols.parts.derived import Derived
from protocols.parts.wrapped import Wrapped, correct, wrapped

if TYPE_CHECKING:
    from mimbench.data import Dataset, Split
    from mimbench.encoder import Encoder

# Top-1 errors of AlexNet on ImageNet-C, each the mean over five severities, in the order of ``COMMON``:
# Hendrycks and Dietterich, arXiv:1903.12261, table 1, in the digits of hendrycks/robustness.
ALEXNET = (
    0.886428,
    0.894468,
    0.922640,
    0.819880,
    0.826268,
    0.785948,
    0.798360,
    0.866816,
    0.826572,
    0.819324,
    0.564592,
    0.853204,
    0.646056,
    0.717840,
    0.606500,
)


@dataclass(frozen=True)
class Robustness(Protocol):
    """Another protocol's classifier on the test images and on corrupted versions of them.

    The classifier is trained and chosen on clean images by its own protocol, at its defaults or by one of
    its official recipes, and sees the corruptions of Hendrycks and Dietterich (arXiv:1903.12261) in the test
    alone. Which versions an image gets and what they look like depends on its place in the split and on
    nothing else: all methods see the same, whatever the seed of the run.

    What comes out for an image is the share of its versions that are recognised, so that intervals and
    paired tests are over images, not over versions. Each pair of corruption and severity occurs equally
    often, so that their mean is the mean over pairs.

    ImageNet-C itself differs: its versions were stored as JPEG of quality 85, resized bilinearly before,
    with motion blur by ImageMagick and an elastic transform that also tilts; the library here, made to
    corrupt images of any size, has a blur of its own and no tilt. So ``mce``, the mean corruption error
    relative to AlexNet's published errors, which is given for the 1000 classes of ImageNet with all pairs,
    is close to published figures and not equal to them.

    A version takes 4 ms of one CPU core at 128 pixels and 9 ms at 224, on average over the 15 corruptions
    (zoom blur 23 and 60, brightness 7 and 20, frost 7 and 5, noises and the digital ones mostly below 5);
    they are made anew for each encoder, by the worker processes. With 15 of 75 per image, the default, a
    test set of 50000 images at 224 pixels is two hours of one core for each encoder.
    """

    key = "robustness"
    version = 1
    metric = "corrupted_top1"
    summary = "the top-1 of another protocol's classifier on corrupted test images; trained on clean ones"
    requires = (("imagecorruptions",), "robustness")
    presets = {
        "imagenet-c": Preset(
            {"per_image": len(COMMON) * len(SEVERITIES)},
            source=(
                "ImageNet-C, arXiv:1903.12261: all 75 versions of each image, made anew and not read from "
                "its files, which differ in JPEG, motion blur and elastic transform"
            ),
        )
    }

    # A classification protocol, one of its recipes, or either with settings: linprobe:mae[epochs=10]
    classifier: str = "linprobe"
    corruptions: Annotated[tuple[Corruption, ...], Field(min_length=1)] = COMMON
    severities: Annotated[tuple[Annotated[int, Field(ge=1, le=5)], ...], Field(min_length=1)] = SEVERITIES
    # Versions of each image; where there are fewer pairs, all.
    per_image: Annotated[int, Field(gt=0)] = 15

    @property
    def collective(self) -> bool:
        """As the classifier's protocol."""
        return self._wrapped.protocol.collective

    @property
    def _wrapped(self) -> Wrapped:
        return wrapped(self.classifier, self.key)

    @property
    def _versions(self) -> Corruptions:
        return Corruptions(
            tuple(dict.fromkeys(self.corruptions)), tuple(dict.fromkeys(self.severities)), self.per_image
        )

    def check(self, data: Dataset) -> None:
        """Raise UserError for data without labels, and whatever the classifier's protocol refuses."""
        super().check(data)
        self._wrapped.check(data)

    def built_on(self, data: Dataset) -> dict[str, Any]:
        """The version of the classifier's protocol and of the library that corrupts."""
        return {"classifier": self._wrapped.identity, "corrupted_by": library_version()}

    def evaluate(self, encoder: Encoder, data: Dataset, around: Surroundings) -> Evaluation:
        """Top-1 on all corrupted versions; beside it on clean images, of each corruption and severity."""
        self.check(data)
        assert data.classes is not None
        inner, versions = self._wrapped, self._versions
        count = data.test_size
        if "glass_blur" in versions.names:  # is compiled at its first use: here, and not in each worker
            corrupted(np.zeros((32, 32, 3), np.uint8), "glass_blur", 1, 0)

        def derive(test: Split) -> Corrupted:
            return Corrupted(test, versions, encoder.image_size, data.defaults.crop_pct)

        derived = Derived(data, derive, count * (1 + versions.each))
        found = inner.protocol.evaluate(encoder, cast("Dataset", derived), around)
        right = correct(found, inner.label)
        clean, of_versions = right[:count], right[count:].reshape(count, versions.each)
        metrics = _metrics(versions, clean, of_versions)
        if error := mean_corruption_error(versions, data.classes, metrics):
            metrics["mce"] = error
        if "validation_top1" in found.metrics:
            metrics["validation_top1"] = found.metrics["validation_top1"]
        return Evaluation(
            metrics,
            Values(of_versions.mean(1)),
            found.selection,
            {
                **inner.facts(found),
                "corrupted_by": library_version(),
                "versions": {"each": versions.each, "of": versions.pairs},
            },
            found.curve,
        )


def _metrics(versions: Corruptions, clean: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """Means over all, by corruption and by severity. clean: [N]; right: [N, versions.each]."""
    metrics = {"corrupted_top1": float(right.mean(1).mean()), "clean_top1": float(clean.mean())}
    if metrics["clean_top1"] > 0:
        metrics["relative"] = metrics["corrupted_top1"] / metrics["clean_top1"]
    pairs = [versions.of(i) for i in range(len(clean))]
    names = np.array([[versions.names.index(name) for name, _ in row] for row in pairs])
    severities = np.array([[severity for _, severity in row] for row in pairs])
    for place, name in enumerate(versions.names):
        if (of_name := names == place).any():  # a few images may not be enough for all
            metrics[f"top1_{name}"] = float(right[of_name].mean())
    for severity in sorted(versions.severities):
        if (of_severity := severities == severity).any():
            metrics[f"top1_severity{severity}"] = float(right[of_severity].mean())
    return metrics


def mean_corruption_error(
    versions: Corruptions, classes: Sequence[str], metrics: dict[str, float]
) -> float | None:
    """The mean over corruptions of the error divided by AlexNet's; None where that compares to nothing."""
    imagenet = len(classes) == 1000 and (classes[0] == "n01440764" or classes[0].startswith("tench"))
    whole = set(versions.names) == set(COMMON) and set(versions.severities) == set(SEVERITIES)
    names = [f"top1_{name}" for name in COMMON]
    if not imagenet or not whole or not all(name in metrics for name in names):
        return None
    errors = [1 - metrics[name] for name in names]
    return float(np.mean([error / of for error, of in zip(errors, ALEXNET, strict=True)]))
