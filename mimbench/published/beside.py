"""Published figures beside measured ones: which belong together, and in what their settings part.

Nothing here enters a table's columns, ranks or means.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mimbench.published import Figure
from mimbench.published.alike import backbones_apart, same_data
from mimbench.published.recipes import RECIPES
from mimbench.report.cards import EXTERNAL
from mimbench.report.tables import Cell, Column, Row, Table
from mimbench.report.text import plain
from mimbench.spec import Setting
from mimbench.weights.release import Release

USUAL_PIXELS = 224  # of images that encoders are trained and tested on, where a source says nothing else
# Training images of an epoch, where what is published says epochs alone.
TRAIN_IMAGES = {"ImageNet-1K": 1_281_167, "Imagenette": 9_469}


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
                found.append(_beside(row.setting, column, row, cell, metric, own))
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
    """Sorts figures, nearest first: by data, backbone, variant and length, then by protocol and source.

    Of released weights, data and length are those of their pre-training.
    """
    here = images_seen(row)
    there = _images_there(figure)
    if (epochs := _epochs(setting, row)) and figure.epochs:
        apart = abs(math.log(epochs / figure.epochs))
    else:
        apart = abs(math.log(here / there)) if here > 0 and there > 0 else math.inf  # NaN is not above 0
    return (
        not same_data(column.data or setting.data, figure.evaluated_on),
        backbones_apart(setting.backbone, figure.backbone_key, figure.backbone),
        not meant(figure, row),
        bool(row.release) and not _same_training(figure, setting, row),
        apart,
        not _same_recipe(figure, column),
        figure.measured_by != "authors",
        ("high", "medium", "low").index(figure.confidence),
    )


def _epochs(setting: Setting, row: Row) -> float | None:
    """Of pre-training, where it was for so many."""
    if row.release is not None:
        return row.release.epochs
    budget = setting.budget
    return budget.amount if budget is not None and budget.unit == "epochs" else None


def meant(figure: Figure, row: Row) -> bool:
    """Whether a figure is of the same form of the method: the usual one, or what its release says."""
    wanted = {"variant": "", **(row.release.figures if row.release else {})}
    return all(str(getattr(figure, name, "")) == value for name, value in wanted.items())


def _same_training(figure: Figure, setting: Setting, row: Row) -> bool:
    """Whether pre-training was on the same data, as far as names tell."""
    if row.release is None:
        return same_data(setting.data, figure.pretrain_data)
    return row.release.data == figure.pretrain_data or same_data(row.release.data, figure.pretrain_data)


def images_seen(row: Row) -> float:
    """Training images that pre-training saw, repetitions counted, mean over seeds; NaN where not recorded."""
    ends = [curve[-1]["images"] for curve in row.curves.values() if "images" in curve[-1]]
    return sum(ends) / len(ends) if ends else math.nan


def _images_there(figure: Figure) -> float:
    return (figure.epochs or math.nan) * TRAIN_IMAGES.get(figure.pretrain_data, math.nan)


def reasons(figure: Figure, setting: Setting, column: Column, row: Row) -> tuple[str, ...]:
    """In what the published setting is not the measured one, in words; empty: the same as far as known."""
    found = [
        *_data(figure, setting, column, row),
        *_backbone(figure, setting, column),
        *_budget(figure, setting, row),
        *_method(figure, setting, row),
        *_protocol(figure, column),
    ]
    return tuple(found)


def _data(figure: Figure, setting: Setting, column: Column, row: Row) -> list[str]:
    tested = column.data if column.tested_on else setting.data
    trained = figure.pretrain_data or "data that its source does not name"
    same_training = _same_training(figure, setting, row)
    ours = (row.release.data or "data that are not known") if row.release else setting.data
    same_test = same_data(tested, figure.evaluated_on)
    if not same_training and not same_test and tested == ours and trained == figure.evaluated_on:
        return [f"data: {tested} here, {trained} there"]
    said = [] if same_training else [f"pre-trained on {ours} here, on {trained} there"]
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
    own = _epochs(setting, row)
    asked = f"{own:g} epochs" if own else "" if row.release else str(setting.budget)
    if own and figure.epochs == own:
        known = not math.isnan(here) and not math.isnan(there)
        if not known or math.isclose(here, there, rel_tol=0.05):
            return []
    if not epochs:
        return [f"pre-training: {asked} here, not stated there"] if asked else []
    ours = (asked or "not known") + ("" if math.isnan(here) else f" ({_count(here)} images seen)")
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
    if row.release is not None:
        return _released(figure, row, row.release)
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


def _released(figure: Figure, row: Row, release: Release) -> list[str]:
    said = []
    if not meant(figure, row):
        ours = release.figures.get("variant") or "as usual"
        said.append(f"variant: {ours} here, {figure.variant or 'as usual'} there")
    # A tokenizer or a teacher is told in other words here and there; that there is one is not.
    if figure.external and (release.external == "none" or (figure.external == "labels") != release.labels):
        told = release.learned_from or EXTERNAL[release.external]
        said.append(f"learns from {told} here, {figure.external} there")
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
