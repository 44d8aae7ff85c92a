"""Published figures beside measured ones: which belong together, and in what their settings part.

Nothing here enters a table's columns, ranks or means.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mimbench.published import Figure
from mimbench.published.recipes import RECIPES
from mimbench.report.tables import Cell, Column, Row, Table
from mimbench.report.text import plain
from mimbench.spec import Setting

USUAL_PIXELS = 224  # of images that encoders are trained and tested on, where a source says nothing else
SIZES = ("micro", "tiny", "small", "base", "large", "huge", "giant")
LETTERS = {"T": "tiny", "S": "small", "B": "base", "L": "large", "H": "huge", "g": "giant"}
OTHER = 10.0  # how far a backbone is that is no plain ViT of known size
# Training images of an epoch, where what is published says epochs alone.
TRAIN_IMAGES = {"ImageNet-1K": 1_281_167, "Imagenette": 9_469}
# What people call the data sets, in the last part of a dataset's name.
ALIASES = {
    "ImageNet-1K": r"imagenet([-_]?1k)?|in1k|ilsvrc([-_]?2012)?",
    "ImageNet-22K": r"imagenet[-_]?2[12]k",
    "Imagenette": r"imagenette2?[-_]?\d*",
    "ADE20K": r"ade20k|adechallengedata2016",
    "COCO": r"coco([-_]?2017)?",
}


@dataclass(frozen=True)
class Beside:
    """A measured number with the published figures of the same method, kind of protocol and metric."""

    row: Row
    cell: Cell
    metric: str
    value: float  # measured, a share
    low: float  # of its interval over test images; NaN where that is of another metric
    high: float
    figure: Figure  # published in the nearest setting
    reasons: tuple[str, ...]  # in what its setting is not the measured one, as far as known
    others: tuple[Figure, ...]  # nearest first

    @property
    def difference(self) -> float:
        """Measured minus published, in points (hundredths)."""
        return 100 * self.value - self.figure.value


def beside(table: Table, place: int, figures: Iterable[Figure]) -> list[Beside]:
    """Published figures for the numbers of one column, in the order of the table's rows.

    Rows of older versions, floors and holes have none. A column that measures more metrics than one has
    an entry for each that somebody published.
    """
    column = table.columns[place]
    if column.unit != "share":
        return []
    fitting: dict[tuple[str, str], list[Figure]] = {}
    for figure in figures:
        if figure.protocol_base == column.protocol:
            fitting.setdefault((figure.key, figure.metric), []).append(figure)
    found = []
    for row in table.rows:
        cell = row.cells[place]
        if row.older or cell.state != "value":
            continue
        for metric in dict.fromkeys([column.metric, *cell.metrics]):
            own = fitting.get((row.method, metric))
            if own:
                found.append(_beside(table.setting, column, row, cell, metric, own))
    return found


def _beside(
    setting: Setting, column: Column, row: Row, cell: Cell, metric: str, own: Sequence[Figure]
) -> Beside:
    ranked = sorted(own, key=lambda figure: distance(figure, setting, column, row))
    main = metric == column.metric
    return Beside(
        row,
        cell,
        metric,
        cell.value if main else cell.metrics[metric],
        cell.low if main else math.nan,
        cell.high if main else math.nan,
        ranked[0],
        reasons(ranked[0], setting, column, row),
        tuple(ranked[1:]),
    )


def distance(figure: Figure, setting: Setting, column: Column, row: Row) -> tuple[float, ...]:
    """Sorts figures, nearest first: by data, backbone, variant and length, then by protocol and source."""
    here = images_seen(row)
    there = _images_there(figure)
    if setting.budget.unit == "epochs" and figure.epochs:
        apart = abs(math.log(setting.budget.amount / figure.epochs))
    else:
        apart = abs(math.log(here / there)) if here > 0 and there > 0 else math.inf  # NaN is not above 0
    return (
        not same_data(column.data or setting.data, figure.evaluated_on),
        _backbones_apart(setting.backbone, figure.backbone_key, figure.backbone),
        bool(figure.variant),
        apart,
        not _same_recipe(figure, column),
        figure.measured_by != "authors",
        ("high", "medium", "low").index(figure.confidence),
    )


def _backbones_apart(here: str, key: str, words: str) -> float:
    """0 for the same backbone, else the steps in size between plain ViTs; a tenth more for other patches."""
    if here == key:
        return 0.0
    ours = re.fullmatch(r"vit_([a-z]+)_patch(\d+)", here)
    theirs = re.fullmatch(r"ViT-([TSBLHg])(?:/(\d+))?", words)
    if not ours or ours[1] not in SIZES or not theirs:
        return OTHER
    steps = abs(SIZES.index(ours[1]) - SIZES.index(LETTERS[theirs[1]]))
    return steps + (0.0 if ours[2] == theirs[2] else 0.1)


def same_data(name: str, published: str) -> bool:
    """Whether a dataset's name here, such as "imagenet:val" or "parquet:imagenette128", is a published one's.

    A name is all that is compared: a subset that is called imagenet passes for it.
    """
    source, _, rest = name.lower().partition(":")
    last = re.split(r"[/\\]", rest.rstrip("/\\"))[-1] if rest else source
    pattern = ALIASES.get(published, re.escape(published.lower()))
    if source == "imagenet" and published == "ImageNet-1K":  # a source that reads its own folders
        return True
    return re.fullmatch(pattern, last) is not None


def images_seen(row: Row) -> float:
    """Training images that pre-training saw, repetitions counted, mean over seeds; NaN where not recorded."""
    ends = [curve[-1]["images"] for curve in row.curves.values() if "images" in curve[-1]]
    return sum(ends) / len(ends) if ends else math.nan


def _images_there(figure: Figure) -> float:
    return (figure.epochs or math.nan) * TRAIN_IMAGES.get(figure.pretrain_data, math.nan)


def reasons(figure: Figure, setting: Setting, column: Column, row: Row) -> tuple[str, ...]:
    """In what the published setting is not the measured one, in words; empty: the same as far as known."""
    found = [
        *_data(figure, setting, column),
        *_backbone(figure, setting, column),
        *_budget(figure, setting, row),
        *_method(figure, setting, row),
        *_protocol(figure, column),
    ]
    return tuple(found)


def _data(figure: Figure, setting: Setting, column: Column) -> list[str]:
    tested = column.data if column.tested_on else setting.data
    trained = figure.pretrain_data or "data that its source does not name"
    same_training = same_data(setting.data, figure.pretrain_data)
    same_test = same_data(tested, figure.evaluated_on)
    if not same_training and not same_test and tested == setting.data and trained == figure.evaluated_on:
        return [f"data: {tested} here, {trained} there"]
    said = [] if same_training else [f"pre-trained on {setting.data} here, on {trained} there"]
    return said + ([] if same_test else [f"tested on {tested} here, on {figure.evaluated_on} there"])


def _backbone(figure: Figure, setting: Setting, column: Column) -> list[str]:
    said = []
    if figure.backbone_key != setting.backbone:
        said.append(f"backbone: {setting.backbone} here, {figure.backbone} there")
    fields = json.loads(column.fields)
    here = fields.get("crop") or fields.get("image_size") or setting.image_size
    if figure.image_size is not None and here != figure.image_size:
        said.append(f"images: {here} pixels here, {figure.image_size} there")
    elif figure.image_size is None and not column.tested_on and here != USUAL_PIXELS:
        said.append(f"images: {here} pixels here, {USUAL_PIXELS} as a rule there")
    return said


def _budget(figure: Figure, setting: Setting, row: Row) -> list[str]:
    here, there = images_seen(row), _images_there(figure)
    epochs = f"{figure.epochs:g} epochs" if figure.epochs else ""
    if setting.budget.unit == "epochs" and figure.epochs == setting.budget.amount:
        known = not math.isnan(here) and not math.isnan(there)
        if not known or math.isclose(here, there, rel_tol=0.05):
            return []
    if not epochs:
        return [f"pre-training: {setting.budget} here, not stated there"]
    ours = f"{setting.budget}" + ("" if math.isnan(here) else f" ({_count(here)} images seen)")
    theirs = epochs + ("" if math.isnan(there) else f" ({_count(there)})")
    return [f"pre-training: {ours} here, {theirs} there"]


def _count(images: float) -> str:
    """107520 -> "108 thousand"."""
    if images >= 1e9:
        return f"{images / 1e9:.3g} billion"
    if images >= 1e6:
        return f"{images / 1e6:.3g} million"
    return f"{images / 1e3:.3g} thousand" if images >= 1e3 else f"{images:.0f}"


def _method(figure: Figure, setting: Setting, row: Row) -> list[str]:
    said = []
    changed = row.variant.removeprefix(row.method).strip("[]")
    if changed or figure.variant:
        said.append(f"variant: {changed or 'as usual'} here, {figure.variant or 'as usual'} there")
    if figure.external and figure.external != row.sources:
        ours = row.sources or ("labels" if row.external == "labels" else "nothing but the images")
        if ours != figure.external:
            said.append(f"learns from {ours} here, {figure.external} there")
    published = row.recipe.get("batch_size") if setting.recipe == "paper" else None
    if setting.recipe == "shared" and row.role == "method":
        said.append("pre-training recipe: one for all methods here, its own there")
    elif published and published != setting.batch_size:
        said.append(f"batch of pre-training: {setting.batch_size} here, {published} in the published recipe")
    return said


def _protocol(figure: Figure, column: Column) -> list[str]:
    said = []
    if not _same_recipe(figure, column):
        said.append(f"protocol: {column.name} here, {_definition(figure)} there")
        fields: dict[str, Any] = json.loads(column.fields)
        for name, fixed in RECIPES.get(figure.protocol_key, {}).items():
            if name in fields and _as_list(fields[name]) != _as_list(fixed):
                said.append(f"{name.replace('_', ' ')}: {_choice(fields[name])} here, {_choice(fixed)} there")
    if figure.chosen_on and figure.chosen_on != column.chosen_on:
        said.append(f"chosen on {_images(column.chosen_on)} here, on {_images(figure.chosen_on)} there")
    return said


def _definition(figure: Figure) -> str:
    """A published protocol in words; a bare "linear probe" stands for whatever its source does."""
    if ":" in figure.protocol_key:
        return f"{figure.protocol} as in {figure.protocol_key}"
    return figure.protocol if set(figure.protocol) & set(",:(") else f"the source's own {figure.protocol}"


def _same_recipe(figure: Figure, column: Column) -> bool:
    """Without a recipe's name "linprobe" is a kind: no two of its figures need to be measured alike."""
    return bool(column.preset) and figure.protocol_key == column.name


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _choice(value: Any) -> str:
    """What a field is, or what is chosen from: [False, True] -> "no or yes"."""
    options = _as_list(value)
    return " or ".join(map(plain, options)) if len(options) <= 3 else f"one of {len(options)}"


def _images(kind: str) -> str:
    return "the test images" if kind == "test" else "validation images"
