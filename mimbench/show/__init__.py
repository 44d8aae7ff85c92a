"""Pictures of what methods do, for people to look at: ``mimbench show``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

from mimbench.errors import UserError, unknown
from mimbench.files import make_folder, write_atomically
from mimbench.progress import Progress, silent
from mimbench.request import RESULTS
from mimbench.show.caption import Caption, caption_of, caption_path

if TYPE_CHECKING:
    from mimbench.show.panels import Sheet
    from mimbench.show.rows import TrainedRow

KINDS = {
    "masked": "what is hidden from each method, and what it predicts there",
    "attention": "where the last block looks",
    "pca": "patch tokens by their three main directions, as colours",
    "neighbours": "the nearest training images",
    "cka": "how alike the layers of all methods are",
    "segmentation": "label maps that evaluations predicted",
    "detection": "boxes that evaluations predicted",
}


@dataclass(frozen=True)
class Shown:
    """The pictures that were drawn, and sentences on those that could not be."""

    files: tuple[Path, ...]
    left_out: tuple[str, ...] = ()


def show(
    rows: str | Sequence[str],
    what: str | Sequence[str] = (),
    data: str | Sequence[str] = ("digits",),
    out: str | Path = RESULTS,
    images: int = 6,
    seed: int = 0,
    to: str | Path | None = None,
    *,
    report: Callable[[Progress], None] = silent,
) -> Shown:
    """Draw pictures of trained rows of the results folder ``out``, as PNG files in ``to``.

    Beside each lies a JSON file of the same name that says what is seen and whose it is; the page of the
    results shows those in ``pictures`` by it.

    rows: "mae,random", names as in its tables; or job ids. what: some of ``KINDS``; by default all that
    these rows and data allow. data: as of a run. Pictures of the encoders are of validation images, so that
    nobody gets to know the test split by looking; predicted label maps and boxes are of the test images
    that evaluations kept. images: how many. to: ``pictures`` in the results folder by default.

    Raises UserError for a row that was not trained, and where a kind that was asked for is impossible.
    """
    from mimbench.data import open_dataset
    from mimbench.settings import split
    from mimbench.show import alike, encoders, masked, predictions
    from mimbench.show.draw import png
    from mimbench.show.rows import find_row

    names = split(rows) if isinstance(rows, str) else list(rows)
    kinds = split(what) if isinstance(what, str) else list(what)
    specs = split(data) if isinstance(data, str) else list(data)
    for kind in kinds:
        if kind not in KINDS:
            raise unknown("kind of picture", kind, KINDS)
    if not names or images < 1:
        raise UserError("nothing to show: name at least one row, as in mimbench show mae, and one image")
    found = [find_row(Path(out), name, seed) for name in names]
    datasets = [open_dataset(spec, report=report) for spec in dict.fromkeys(specs)]

    left_out: list[str] = []

    def drawn(kind: str) -> list[Sheet]:
        first = datasets[0]
        if kind == "masked":
            return _of_each(lambda row: masked.sheet(row, first, images, seed), found, left_out)
        if kind == "attention":
            return [encoders.attention(found, first, images)]
        if kind == "pca":
            return [encoders.principal(found, first, images)]
        if kind == "cka":
            return [alike.sheet(found, first, report)]
        if kind == "neighbours":
            return _of_each(lambda row: encoders.neighbours(row, first, images, report), found, left_out)
        return predictions.sheets(kind, found, datasets, images)

    folder = make_folder(Path(to) if to is not None else Path(out) / "pictures")
    files: list[Path] = []
    for kind in kinds or KINDS:
        try:
            sheets = drawn(kind)
        except UserError as error:
            if kinds:
                raise
            left_out.append(f"{kind} is left out: {error}")
            continue
        for sheet in sheets:
            path, content = folder / f"{sheet.name}.png", png(sheet)
            write_atomically(path, partial(_write, content))
            caption = _caption(kind, sheet, seed, content)
            write_atomically(caption_path(path), partial(_write, caption.model_dump_json(indent=1).encode()))
            files.append(path)
    return Shown(tuple(files), tuple(left_out))


def _caption(kind: str, sheet: Sheet, seed: int, picture: bytes) -> Caption:
    return caption_of(
        picture,
        kind=kind,
        title=sheet.title,
        headings=sheet.headings,
        lines=len(sheet.rows),
        note=sheet.note,
        legend=tuple(name for name, _ in sheet.legend),
        jobs=dict(sheet.jobs),
        data=sheet.data[0],
        fingerprint=sheet.data[1],
        seed=seed,
    )


def _of_each(
    draw: Callable[[TrainedRow], Sheet], rows: Sequence[TrainedRow], left_out: list[str]
) -> list[Sheet]:
    """A sheet of each row that has something to show; the others are told. UserError where none has."""
    sheets, refusals = [], []
    for row in rows:
        try:
            sheets.append(draw(row))
        except UserError as error:
            refusals.append(str(error))
    if not sheets:
        raise UserError("; ".join(refusals))
    left_out += refusals
    return sheets


def _write(content: bytes, file: IO[bytes]) -> None:
    file.write(content)
