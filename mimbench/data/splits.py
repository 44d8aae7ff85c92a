"""Which sample belongs to which split, decided by content alone: no path, order or clock has a say."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from mimbench import rng
from mimbench.data.scan import Scan
from mimbench.data.sources.base import Listing
from mimbench.errors import UserError

SEED = rng.salt("mimbench split 1")
VALIDATION_SHARE = 0.1  # of train, where a source gives no validation part


def held_out(
    digests: np.ndarray,
    labels: np.ndarray | None,
    shares: tuple[float, ...],
    *,
    source: str,
    classes: Sequence[str] | None = None,
) -> list[np.ndarray]:
    """Divides samples, stratified by label, into the held-out ``shares`` and, last, the rest.

    digests: uint8 [N, 32], of the samples' content; labels: int64 [N] or None. Returns ascending indices.
    Within a class samples are ordered by a seeded hash of their content, and equal ones stay together, so
    that no image is in two of the splits. ``source`` and ``classes`` are names for the message.

    Raises UserError where a class has too few different samples to leave one in each.
    """
    content = np.ascontiguousarray(digests[:, :8]).view(np.uint64)[:, 0]
    order_keys = rng.sample_keys(SEED, 0, content).view(np.uint64)
    strata = np.zeros(len(digests), np.int64) if labels is None else labels
    chosen: list[list[np.ndarray]] = [[] for _ in range(len(shares) + 1)]
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        members = members[np.argsort(order_keys[members], kind="stable")]
        # Ends of the runs of equal content: the only places where it may be cut.
        cuts = np.append(np.flatnonzero(np.diff(order_keys[members])) + 1, len(members))
        if len(cuts) <= len(shares):
            kind = f"its class {classes[stratum]}" if classes is not None else "it"
            raise UserError(
                f"{source} cannot be divided: {kind} has {len(cuts)} different "
                f"image{'s' * (len(cuts) != 1)}, at least {len(shares) + 1} are needed to hold some out; "
                "add images or give the splits yourself"
            )
        start, used = 0, 0
        for place, share in enumerate(shares):
            wanted = start + max(1, round(share * len(members)))
            cut = int(np.searchsorted(cuts, wanted))
            cut = min(max(cut, used), len(cuts) - 1 - (len(shares) - place))  # leave one for each later
            chosen[place].append(members[start : cuts[cut]])
            start, used = int(cuts[cut]), cut + 1
        chosen[-1].append(members[start:])
    return [np.sort(np.concatenate(indices)) for indices in chosen]


def fingerprint(
    digests: np.ndarray, labels: np.ndarray | None, targets: np.ndarray | None = None, meaning: str = ""
) -> str:
    """SHA-256, in hex, over (content, label or annotations) of every sample, order included.

    targets: uint8 [N, 32], of the annotations; meaning: of all of them, see ``Annotations.meaning``.
    """
    rows = np.ascontiguousarray(digests, np.uint8)
    kind = "unlabelled"
    if labels is not None:
        rows, kind = np.concatenate([rows, labels.astype("<i8").view(np.uint8).reshape(-1, 8)], 1), "labelled"
    if targets is not None:
        rows, kind = np.concatenate([rows, targets], 1), f"annotated: {meaning} "
    return hashlib.sha256(f"mimbench split 1 {kind}".encode() + rows.tobytes()).hexdigest()


def divide(found: Listing, scans: dict[str, Scan]) -> tuple[dict[str, tuple[str, np.ndarray]], str]:
    """For each split the part it comes from and its samples' indices there; and the rule, in words."""
    chosen, rule = _divide(found, scans)
    return chosen, f"{rule} ({found.divided_by})" if found.divided_by else rule


def _divide(found: Listing, scans: dict[str, Scan]) -> tuple[dict[str, tuple[str, np.ndarray]], str]:
    sound = {name: np.flatnonzero(reading.sizes[:, 0] > 0) for name, reading in scans.items()}
    for name, samples in sound.items():
        if not len(samples):
            raise UserError(f"not one image of the {name} part of {found.name} can be read; check the files")

    def cut(shares: tuple[float, ...]) -> list[np.ndarray]:
        samples = sound["train"]
        labels = found.parts["train"].labels
        parts = held_out(
            scans["train"].digests[samples],
            None if labels is None else labels[samples],
            shares,
            source=found.name,
            classes=None if labels is None else found.classes,
        )
        return [samples[indices] for indices in parts]

    stratified = "" if found.parts["train"].labels is None else "stratified, "
    if found.classes is None:
        if "validation" in sound:
            given = {name: (name, sound[name]) for name in ("train", "validation")}
            return given, "unlabelled; train and validation as given"
        validation, train = cut((VALIDATION_SHARE,))
        return (
            {"train": ("train", train), "validation": ("train", validation)},
            f"unlabelled; validation: {VALIDATION_SHARE:.0%} of train, by a hash of the content",
        )
    if "validation" in sound and "test" in sound:
        return {name: (name, sound[name]) for name in ("train", "validation", "test")}, "all three as given"
    official = next((name for name in ("test", "validation") if name in sound), None)
    if official:
        validation, train = cut((VALIDATION_SHARE,))
        return (
            {
                "train": ("train", train),
                "validation": ("train", validation),
                "test": (official, sound[official]),
            },
            f"test: the given {official} part; validation: {VALIDATION_SHARE:.0%} of train, "
            f"{stratified}by a hash of the content",
        )
    for_validation, for_test = found.held_out
    test, validation, train = cut((for_test, for_validation))
    return (
        {"train": ("train", train), "validation": ("train", validation), "test": ("train", test)},
        f"test: {for_test:.0%}, validation: {for_validation:.0%} of the whole, {stratified}"
        "by a hash of the content",
    )


def require_two_classes(found: Listing) -> None:
    """Raises UserError for a labelled source of fewer than two classes; one is enough to be detected."""
    if found.classes is not None and len(found.classes) < 2 and found.task != "detection":
        only = found.classes[0] if found.classes else "none"
        raise UserError(
            f"{found.name} has labels of one class only ({only}); an evaluation needs at least 2 classes, "
            "while pre-training does without labels: give it the images as a flat folder, imagefolder:PATH"
        )


def check_classes(found: Listing, chosen: dict[str, tuple[str, np.ndarray]]) -> None:
    """Raises UserError where a split of a labelled source lacks a class.

    In segmentation and detection it may: their metrics are means over the classes that occur.
    """
    if found.classes is None or found.annotations:
        return
    for name, (origin, indices) in chosen.items():
        labels = found.parts[origin].labels
        assert labels is not None
        counts = np.bincount(labels[indices], minlength=len(found.classes))
        missing = [found.classes[i] for i in np.flatnonzero(counts == 0)]
        if missing:
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise UserError(
                f"the {name} split of {found.name} has no image of {len(missing)} of its "
                f"{len(found.classes)} classes ({', '.join(missing[:5])}{more}); add some, "
                "or take the class out of the other splits"
            )
