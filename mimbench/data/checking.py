"""``mimbench data check``: everything worth knowing about a dataset before work starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mimbench.data.annotated import readings
from mimbench.data.cache import cache_folder
from mimbench.data.counting import Content, contents, remarks
from mimbench.data.dataset import broken_images, listing, split_fingerprint
from mimbench.data.scan import Scan
from mimbench.data.sources.base import Listing
from mimbench.data.splits import check_classes, divide, require_two_classes
from mimbench.errors import UserError
from mimbench.progress import Progress, silent


@dataclass(frozen=True)
class CheckReport:
    """What ``check`` found. Sizes and counts are of sound images, as ``--skip-broken`` would use them.

    problems: sentences, each of which keeps ``open_dataset`` from opening it. warnings: what it does not
    mind but a reader of results might.
    """

    spec: str
    name: str
    given: dict[str, int]  # images by official part, broken ones included
    splits: dict[str, int] = field(default_factory=dict)  # images by split
    rule: str = ""  # how the splits come about
    task: str = "classification"
    classes: tuple[str, ...] | None = None
    per_class: dict[str, dict[str, int]] = field(default_factory=dict)  # by split: fewest and most of a class
    contents: dict[str, Content] = field(default_factory=dict)  # by split, of label maps and boxes
    short_side: dict[str, int] = field(default_factory=dict)  # min, median and max, in pixels
    common_sizes: dict[str, int] = field(
        default_factory=dict
    )  # images by "width x height", the five commonest
    broken: dict[str, str] = field(default_factory=dict)  # reason by name
    duplicates: dict[str, int] = field(default_factory=dict)  # images of the second split also in the first
    fingerprints: dict[str, str] = field(default_factory=dict)  # by split
    warnings: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether ``open_dataset`` would open it."""
        return not self.problems

    def content(self) -> dict[str, Any]:
        """The fields as plain JSON data."""
        return {**asdict(self), "ok": self.ok}


def check(
    spec: str, *, cache: Path | None = None, report: Callable[[Progress], None] = silent
) -> CheckReport:
    """Read every image of ``spec`` and say what is there; broken images do not stop it.

    Raises UserError only where there is nothing to look at: an unknown source, a wrong path, no images.
    """
    folder = cache_folder("data", cache)
    found = listing(spec, folder)
    scans = readings(found, folder, report)
    broken = broken_images(found, scans)
    facts: dict[str, Any] = {
        "spec": spec,
        "name": found.name,
        "given": {name: len(part) for name, part in found.parts.items()},
        "task": found.task,
        "classes": found.classes,
        "broken": broken,
        **_sizes(scans),
    }
    problems = []
    if broken:
        verb = "used" if found.annotations else "read"
        problems.append(
            f"{len(broken)} images cannot be {verb}; mend them, or leave them out by --skip-broken"
        )
    warnings = list(found.notes)
    try:
        require_two_classes(found)
        chosen, facts["rule"] = divide(found, scans)
        facts["splits"] = {name: len(indices) for name, (_, indices) in chosen.items()}
        facts |= _per_split(found, scans, chosen)
        facts["contents"] = contents(found, chosen, report)
        warnings += _suspicions(facts["duplicates"], facts["per_class"]) + remarks(facts["contents"])
        check_classes(found, chosen)
    except UserError as error:
        problems.append(str(error))
    return CheckReport(**facts, warnings=tuple(warnings), problems=tuple(problems))


def _sizes(scans: dict[str, Scan]) -> dict[str, Any]:
    sizes = np.concatenate([reading.sizes for reading in scans.values()])
    sizes = sizes[sizes[:, 0] > 0]
    if not len(sizes):
        return {}
    short = sizes.min(1)
    counted = Counter(f"{width} x {height}" for height, width in sizes.tolist())
    return {
        "short_side": {"min": int(short.min()), "median": int(np.median(short)), "max": int(short.max())},
        "common_sizes": dict(counted.most_common(5)),
    }


def _per_split(
    found: Listing, scans: dict[str, Scan], chosen: dict[str, tuple[str, np.ndarray]]
) -> dict[str, Any]:
    fingerprints, per_class, contents = {}, {}, {}
    for name, (origin, indices) in chosen.items():
        labels = found.parts[origin].labels
        labels = None if labels is None else labels[indices]
        digests = scans[origin].digests[indices]
        fingerprints[name] = split_fingerprint(found, origin, scans[origin], indices)
        contents[name] = [row.tobytes() for row in digests]
        if labels is not None and found.classes is not None:
            counts = np.bincount(labels, minlength=len(found.classes))
            per_class[name] = {"min": int(counts.min()), "max": int(counts.max())}
    duplicates = {}
    names = list(chosen)
    for i, first in enumerate(names):
        known = set(contents[first])
        duplicates[f"within {first}"] = len(contents[first]) - len(known)
        for second in names[i + 1 :]:
            duplicates[f"{first} and {second}"] = sum(content in known for content in contents[second])
    return {"fingerprints": fingerprints, "per_class": per_class, "duplicates": duplicates}


def _suspicions(duplicates: dict[str, int], per_class: dict[str, dict[str, int]]) -> list[str]:
    sentences = []
    for where, count in duplicates.items():
        if count and "test" in where.split():
            kind = (
                "are copies of each other"
                if where.startswith("within")
                else "are byte for byte in both splits"
            )
            sentences.append(f"{where}: {count} test images {kind}, which flatters or blurs every result")
        elif count:
            sentences.append(f"{where}: {count} images are copies")
    for name, counts in per_class.items():
        if counts["max"] > 10 * max(counts["min"], 1):
            sentences.append(
                f"{name}: the largest class has {counts['max']} images, the smallest {counts['min']}; "
                "top-1 accuracy says little about the small ones"
            )
    return sentences
