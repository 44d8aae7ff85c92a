"""What ``mimbench doctor weights`` says of a file: its origin, what of it was used, what its tokens are."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mimbench import checkpoint
from mimbench.errors import UserError
from mimbench.progress import Progress, silent
from mimbench.spec import Readout
from mimbench.weights.audit import Audit, audit
from mimbench.weights.convert import convert
from mimbench.weights.entries import find_entry
from mimbench.weights.entry import trained_on
from mimbench.weights.given import Given, of_file, resolve

# What tensors of one kind differ in: the number of their block, and being a weight or a bias.
NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
ENDING = re.compile(r"\.(weight|bias)$")


@dataclass(frozen=True)
class Examined:
    """Weights, what is known of them, and the figures of their tokens."""

    given: Given
    size: int  # bytes
    audit: Audit


def examine(source: str, layout: str = "", report: Callable[[Progress], None] = silent) -> Examined:
    """Look at a file, or at what ``--methods`` would take by that name.

    layout: for a foreign file, the entry of the catalogue whose layout it has. report: hears how far weights
    are that have to be fetched. Raises UserError for a file that does not fit it, naming what is lost,
    unexpected or not finite.
    """
    path = Path(source).expanduser()
    if not layout:
        if path.is_file() and not checkpoint.read_metadata(path):
            raise UserError(
                f"{path} is no encoder that mimbench wrote; say whose layout it has, as in mimbench doctor "
                f"weights {path} --as mae@vit_base (mimbench weights list lists all)"
            )
        return _examine(of_file(path) if path.exists() else resolve(source, report))
    if not path.is_file():
        raise UserError(f"no weights file at {path}; check the path")
    with tempfile.TemporaryDirectory(prefix="mimbench-weights-") as folder:
        target = Path(folder) / checkpoint.ENCODER_FILE
        convert(path, find_entry(layout), target)
        return _examine(of_file(target, path.name))


def _examine(given: Given) -> Examined:
    encoder = checkpoint.load_encoder(given.path)
    readout = given.readout
    if "cls" in readout.token and not encoder.has_cls:
        readout = Readout(token="mean")
    return Examined(given, given.path.stat().st_size, audit(encoder, readout))


def told(examined: Examined) -> RenderableType:
    """For a terminal."""
    found = examined.audit
    verdict = "\n".join(f"! {flag}" for flag in found.flags) or "nothing wrong was found"
    style = "bold red" if found.flags else "bold"
    return Group(_facts(examined), _figures(found), Text(_reading(found)), Text(verdict, style=style))


def _facts(examined: Examined) -> Table:
    given = examined.given
    release = given.release
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    config = given.config
    shape = f"{config['name']} at {config['image_size']} px"
    rows = [
        ("weights", given.label),
        ("method", given.method),
        ("backbone", shape),
        ("pre-trained on", _pretraining(release)),
        ("told beside images", release.get("external", "")),
        ("licence", release.get("licence", "")),
        ("read from", release.get("file", "") or str(given.path)),
        ("its sha256", release.get("file_sha256", "")),
        ("layout", f"{release['origin']}, version {release['origin_version']}" if release else ""),
        ("readout", given.readout.label),
        ("used", _summed(release.get("used", ()))),
        *(("dropped", f"{_summed(names)}: {why}") for why, names in _by_reason(release.get("dropped", {}))),
        *(("fresh", f"{_summed(names)}: {why}") for why, names in _by_reason(release.get("fresh", {}))),
        ("constant matrices", _summed(examined.audit.constant)),
        ("size", f"{examined.size / 2**20:.1f} MiB"),
    ]
    for name, value in rows:
        if value:
            table.add_row(Text(name), Text(value))
    return table


def _pretraining(release: Mapping[str, Any]) -> str:
    labels = "then trained on its labels" if release.get("labels") else ""
    trained = trained_on(release.get("data", ""), release.get("epochs"))
    return ", ".join(part for part in (trained, labels) if part)


def _by_reason(names: Mapping[str, str]) -> Iterator[tuple[str, list[str]]]:
    """Reasons with the names they are given for."""
    for why in dict.fromkeys(names.values()):
        yield why, [name for name, reason in names.items() if reason == why]


def _summed(names: Iterable[str]) -> str:
    """Tensors by name, those of all blocks as one: "146 tensors (blocks.*.attn.qkv, …)"."""
    names = list(names)
    if not names:
        return ""
    kinds = list(dict.fromkeys(ENDING.sub("", NUMBER.sub("*", name)) for name in names))
    return f"{len(names)} tensor{'s' * (len(names) > 1)} ({', '.join(kinds)})"


def _figures(found: Audit) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("tokens of two photographs")
    for title in ("these weights", "random ones"):
        table.add_column(title, justify="right", no_wrap=True)
    for title, name, digits in (
        ("variance over places", "place_variance", "{:.4f}"),
        ("variance over images (of what is read out)", "image_variance", "{:.4f}"),
        ("effective rank", "token_rank", "{:.1f}"),
        ("mean length", "norm_mean", "{:.1f}"),
        ("greatest length", "norm_max", "{:.1f}"),
    ):
        table.add_row(title, *(digits.format(getattr(side, name)) for side in (found.own, found.random)))
    return table


def _reading(found: Audit) -> str:
    return (
        f"Likeness to random weights {found.alike:.3f} (linear CKA; two random draws {found.by_chance:.3f}, "
        "and what was trained for long lies well below that)."
    )
