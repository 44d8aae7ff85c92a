"""The catalogue of released weights as people read it: a list, and all of one entry. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mimbench.errors import UserError, unknown
from mimbench.published import Figure, load
from mimbench.registry import find_origin, methods
from mimbench.settings import show
from mimbench.weights.entries import converted_path, entries
from mimbench.weights.entry import Entry, Mirror
from mimbench.weights.obtain import fetched_path

FORMATS = ("table", "csv", "markdown")
WIDE = 120  # columns of a terminal from which on the list says all
SHORTEST = 9  # letters of data set and licence on a narrow terminal
AtHand = Literal["converted", "fetched", "to fetch", "by hand"]
HEADS = ("name", "backbone", "data", "epochs", "told", "licence", "at hand")
TOLD = (
    "told: the most that pre-training was told beside the images; labels: or the encoder itself, later. "
    "at hand: in the cache, converted or as released; by hand: no address to fetch it from is known."
)


def chosen(method: Sequence[str] = (), backbone: str = "") -> list[Entry]:
    """Entries of the methods with these keys and with this text in their backbone; by default all.

    Raises UserError for what no entry has, naming near matches.
    """
    known = dict.fromkeys(entry.method for entry in entries().values())
    for key in method:
        if key not in known:
            raise unknown("method with released weights", key, known, "mimbench weights list lists all")
    found = [entry for entry in entries().values() if not method or entry.method in method]
    if backbone:
        some = sorted({entry.backbone for entry in found})
        found = [entry for entry in found if backbone.lower() in f"{entry.name} {entry.backbone}".lower()]
        if not found:
            raise UserError(
                f"no released weights have {backbone!r} in their backbone; there are {', '.join(some)}"
            )
    return found


def at_hand(entry: Entry) -> AtHand:
    """How near the weights are. Looks into the cache, never into a network."""
    if converted_path(entry).is_file():
        return "converted"
    if any(fetched_path(mirror) for mirror in entry.mirrors):
        return "fetched"
    return "to fetch" if entry.mirrors else "by hand"


def listed(found: Sequence[Entry], format: str = "table", width: int = WIDE) -> RenderableType | str:
    """The entries in one of ``FORMATS``; text for files, something ``rich`` prints for "table".

    Raises UnknownNameError for another format.
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    if format == "csv":
        from mimbench.report.sheet import csv_text

        return csv_text(frame(found))
    return _markdown(found) if format == "markdown" else _table(found, width)


def frame(found: Iterable[Entry]) -> Any:
    """The entries as a DataFrame, one row each: what the catalogue says of them, and ``at_hand``."""
    import pandas as pd

    columns = ["name", "method", "backbone", "image_size", "data", "epochs", "external", "learned_from"]
    columns += ["labels", "licence", "page", "source", "notes"]
    rows = [{c: getattr(entry, c) for c in columns} | {"at_hand": at_hand(entry)} for entry in found]
    return pd.DataFrame(rows, columns=[*columns, "at_hand"])


def _cells(entry: Entry) -> tuple[str, ...]:
    epochs = f"{entry.epochs:g}" if entry.epochs else ""
    told = "" if entry.external == "none" else entry.external
    return entry.name, entry.backbone, entry.data, epochs, told, entry.licence, at_hand(entry)


def _table(found: Sequence[Entry], width: int) -> RenderableType:
    """One line an entry; on a narrow terminal without the backbone, which the name says."""
    wide = width >= WIDE
    rows = [dict(zip(HEADS, _cells(entry), strict=True)) for entry in found]
    heads = [head for head in HEADS if wide or head != "backbone"]
    if not wide:
        for row in rows:
            row["data"] = row["data"].replace("ImageNet-", "IN-")
    needed = {head: max([len(head), *(len(row[head]) for row in rows)]) for head in heads}
    shortened = ("name", "data", "licence")  # the first goes on in a second line
    left = width - sum(needed[head] for head in heads if head not in shortened)
    left -= len(heads) * (2 if wide else 1) + 1
    needed["name"] = min(needed["name"], max(left - 2 * SHORTEST, 1))
    left -= needed["name"]
    needed["data"] = min(needed["data"], max(left // 2, left - needed["licence"], 1))
    needed["licence"] = min(needed["licence"], max(left - needed["data"], 1))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, padding=(0, 1 if wide else 0))
    for head in heads:
        table.add_column(
            head,
            width=needed[head],
            overflow="fold" if head == "name" else "ellipsis",
            no_wrap=head != "name",
            justify="right" if head == "epochs" else "left",
            style="bold" if head == "name" else "",
        )
    for row in rows:
        table.add_row(*(Text(row[head]) for head in heads))
    count = f"{len(found)} released files; mimbench weights show NAME tells all of one. "
    return Group(table, Text(count + TOLD, style="dim"))


def _markdown(found: Sequence[Entry]) -> str:
    from mimbench.report.markdown import escape

    lines = [f"| {' | '.join(HEADS)} |", f"|{' --- |' * len(HEADS)}"]
    lines += [f"| {' | '.join(map(escape, _cells(entry)))} |" for entry in found]
    return "\n".join(lines) + "\n"


def figures_of(entry: Entry, figures: Iterable[Figure] | None = None) -> list[Figure]:
    """Published figures of these weights: of the method and backbone and, where both are known, of the same
    data and epochs. What the entry says of ``figures`` decides among several; otherwise the method's usual
    form is meant."""
    wanted = {"key": entry.method, "backbone_key": entry.backbone, "variant": "", **entry.figures}
    return [
        figure
        for figure in (load() if figures is None else figures)
        if all(str(getattr(figure, name)) == value for name, value in wanted.items())
        and (
            "epochs" in entry.figures
            or None in (figure.epochs, entry.epochs)
            or figure.epochs == entry.epochs
        )
        and (not figure.pretrain_data or figure.pretrain_data == entry.data)
    ]


def card(entry: Entry) -> RenderableType:
    """Everything known of one entry, with the published figures that belong to it."""
    from mimbench.published.tell import told

    origin = find_origin(entry.origin)
    cls = methods().get(entry.method)
    title, paper, arxiv, code = entry.title, entry.paper, entry.arxiv, entry.code
    if cls is not None:
        title, paper = title or cls.card.name, paper or cls.card.paper
        arxiv, code = arxiv or cls.card.arxiv, code or cls.card.code
    epochs = f", {entry.epochs:g} epochs" if entry.epochs else ""
    rows = [
        ("name", entry.name),
        ("method", f"{title} ({entry.method})" if title else entry.method),
        ("paper", paper),
        ("arXiv", f"https://arxiv.org/abs/{arxiv}" if arxiv else ""),
        ("official code", code),
        ("backbone", f"{entry.backbone} at {entry.image_size} px"),
        ("options", show(entry.options) if entry.options else ""),
        ("pre-trained on", entry.data + epochs),
        ("told beside images", entry.external + (f": {entry.learned_from}" if entry.learned_from else "")),
        ("labels seen", "yes, the encoder itself was trained on them" if entry.labels else "no"),
        ("licence", entry.licence),
        ("layout", f"{origin.key}, version {origin.version}: {origin.summary}"),
        ("container", ".".join(entry.container) if entry.container else ""),
        ("readout", entry.readout.label),
        ("mean, std", f"{show(entry.mean)}, {show(entry.std)}"),
        *(("mirrors" if not n else "", _mirror(mirror)) for n, mirror in enumerate(entry.mirrors)),
        ("page", entry.page),
        ("at hand", _place(entry)),
        ("source", entry.source),
        ("notes", entry.notes),
    ]
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, value in rows:
        if value:
            table.add_row(Text(name), Text(value))
    figures = figures_of(entry)
    if not figures:
        return Group(table, Text("No published figure of just these weights is known.", style="dim"))
    return Group(table, told(figures))


def _mirror(mirror: Mirror) -> str:
    known = [
        f"revision {mirror.revision}" if mirror.url.startswith("hf:") else "",
        f"sha256 {mirror.sha256}" if mirror.sha256 else "sha256 not known",
        f"{mirror.size:,} bytes" if mirror.size else "",
        f"layout {mirror.origin}" if mirror.origin else "",
    ]
    return f"{mirror.url} ({', '.join(part for part in known if part)})"


def _place(entry: Entry) -> str:
    state = at_hand(entry)
    if state == "converted":
        return f"converted: {converted_path(entry)}"
    if state == "fetched":
        return "fetched: " + ", ".join(str(path) for m in entry.mirrors if (path := fetched_path(m)))
    if state == "to fetch":
        return f"no; mimbench weights get {entry.name} fetches it"
    return f"no; fetch it by hand, then mimbench weights convert PATH --as {entry.name}"
