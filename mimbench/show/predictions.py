"""Label maps and boxes that evaluations predicted for some test images, beside the annotations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mimbench import records
from mimbench.data import Boxes, Dataset
from mimbench.errors import UserError
from mimbench.ledger import Ledger
from mimbench.show.panels import WRONG, Box, Panel, Sheet, file_name
from mimbench.show.rows import TrainedRow, jobs_of
from mimbench.spec import Record

LEAST_SCORE = 0.3  # of boxes that are drawn
MOST_BOXES = 30
IGNORED = np.array([225, 225, 225], np.uint8)


def sheets(kind: str, rows: Sequence[TrainedRow], datasets: Sequence[Dataset], count: int) -> list[Sheet]:
    """One sheet for each data set and protocol of the ``kind`` that these rows were evaluated by.

    Raises UserError where there is none.
    """
    fitting = [data for data in datasets if data.task == kind]
    if not fitting:
        raise UserError(f"none of the data is for {kind}; add some with --data, as for mimbench run")
    found = []
    for data in fitting:
        columns: dict[str, list[tuple[TrainedRow, dict[str, np.ndarray]]]] = {}
        for row in rows:
            for record in _evaluations(row, data):
                if (kept := _samples(row.folder, record)) is not None:
                    columns.setdefault(_protocol(record), []).append((row, kept))
        draw = _segmentations if kind == "segmentation" else _detections
        found += [draw(protocol, own, data, count) for protocol, own in columns.items()]
    if not found:
        names = ", ".join(row.name for row in rows)
        raise UserError(
            f"no {kind} protocol was evaluated for {names} on {', '.join(d.name for d in fitting)}; "
            "run one first"
        )
    return found


def _protocol(record: Record) -> str:
    preset = record.content.get("preset")
    return f"{record.content['protocol']}:{preset}" if preset else str(record.content["protocol"])


def _evaluations(row: TrainedRow, data: Dataset) -> Iterable[Record]:
    for record in records.read_folder(row.folder):
        if record.kind == "evaluate" and record.status == "done" and row.record.id in record.needs:
            other = record.content.get("data")
            fingerprint = other["fingerprint"] if other else record.content["setting"]["fingerprint"]
            if fingerprint == data.fingerprint:
                yield record


def _samples(folder: Path, record: Record) -> dict[str, np.ndarray] | None:
    path = Ledger(folder).samples(record.id)
    if not path.is_file():
        return None
    with np.load(path) as kept:
        return dict(kept)


def _places(own: Sequence[tuple[TrainedRow, dict[str, np.ndarray]]], count: int) -> list[int]:
    """The test images that every row kept something of."""
    common = set.intersection(*({int(name.split()[1]) for name in kept} for _, kept in own))
    return sorted(common)[:count]


def _sheet(protocol: str, own: Sequence[tuple[TrainedRow, Any]], data: Dataset, **parts: Any) -> Sheet:
    headings = ("test image", "annotation", *(row.name for row, _ in own))
    name = file_name(protocol, data.name, *(row.name for row, _ in own))[:120]
    jobs = jobs_of(row for row, _ in own)
    title, source = f"{protocol} on {data.name}", (data.name, data.fingerprint)
    return Sheet(name, title, headings, jobs=jobs, data=source, **parts)


def _segmentations(
    protocol: str, own: Sequence[tuple[TrainedRow, dict[str, np.ndarray]]], data: Dataset, count: int
) -> Sheet:
    split = data.open_test()
    assert data.classes is not None
    colours = palette(len(data.classes))
    rows, present = [], set()
    for place in _places(own, count):
        image, target = split.image(place), np.asarray(split.target(place))
        maps = [kept[f"labels {place}"] for _, kept in own]
        present |= {int(c) for labels in (target, *maps) for c in np.unique(labels) if c < len(colours)}
        shown = [(m, float((m == target)[target < len(colours)].mean())) for m in maps]
        rows.append(
            (
                Panel(image),
                Panel(_coloured(target, colours)),
                *(Panel(_coloured(m, colours), f"{share:.0%} of pixels right") for m, share in shown),
            )
        )
    legend = tuple((data.classes[c], _hex(colours[c])) for c in sorted(present))
    note = "Pixels of no class in the annotation are light grey; they count for nothing."
    return _sheet(protocol, own, data, rows=tuple(rows), note=note, legend=legend)


def _detections(
    protocol: str, own: Sequence[tuple[TrainedRow, dict[str, np.ndarray]]], data: Dataset, count: int
) -> Sheet:
    split = data.open_test()
    assert data.classes is not None
    rows = []
    for place in _places(own, count):
        image, truth = split.image(place), split.target(place)
        assert isinstance(truth, Boxes)
        true = _boxes(truth.boxes, truth.labels, None, data.classes)
        predicted = []
        for _, kept in own:
            boxes = np.asarray(kept[f"boxes {place}"], float).reshape(-1, 5)
            chosen = np.flatnonzero(boxes[:, 4] >= LEAST_SCORE)[:MOST_BOXES]
            labels = kept[f"classes {place}"][chosen]
            predicted.append(_boxes(boxes[chosen, :4], labels, boxes[chosen, 4], data.classes))
        rows.append(
            (
                Panel(image),
                Panel(image, boxes=true),
                *(Panel(image, f"{len(own_boxes)} boxes", boxes=own_boxes) for own_boxes in predicted),
            )
        )
    note = f"Boxes of a score of {LEAST_SCORE:g} at least, {MOST_BOXES} at most."
    return _sheet(protocol, own, data, rows=tuple(rows), note=note)


def _boxes(
    boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray | None, classes: Sequence[str]
) -> tuple[Box, ...]:
    """Rectangles x, y, width, height [n, 4], labelled with class and score."""
    found = []
    for i, (x, y, width, height) in enumerate(boxes.tolist()):
        label = classes[int(labels[i])] + ("" if scores is None else f" {scores[i]:.2f}")
        colour = {"colour": WRONG} if scores is not None else {}
        found.append(Box(x, y, width, height, label, **colour))
    return tuple(found)


def palette(count: int) -> np.ndarray:
    """Colours that stay apart, uint8 [count, 3]: hues a golden angle apart, in three shades."""
    import colorsys

    golden = (5**0.5 - 1) / 2
    shades = [(0.65, 0.90), (0.85, 0.65), (0.45, 0.75)]
    colours = [colorsys.hsv_to_rgb((i * golden) % 1, *shades[i % len(shades)]) for i in range(count)]
    return np.array([[round(255 * part) for part in colour] for colour in colours], np.uint8)


def _coloured(labels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    known = labels < len(colours)
    return np.where(known[..., None], colours[np.where(known, labels, 0)], IGNORED)


def _hex(colour: np.ndarray) -> str:
    return "#" + "".join(f"{part:02x}" for part in colour.tolist())
