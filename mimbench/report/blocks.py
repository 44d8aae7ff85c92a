"""Which columns of which tables belong together: one block is one protocol on one data set."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import pandas as pd

from mimbench.report.tables import Cell, Column, Table
from mimbench.spec import LABEL, LABEL_RELEASED, canonical

LeftOut = tuple[tuple[str, str], ...]  # (method, what it lacks)


@dataclass(frozen=True, eq=False)
class Block:
    """One protocol on one data set: a column of a table that ranks, with a number of one method at least."""

    table: Table
    group: str  # heading of the rows that it compares, "" where rows stand in none
    place: int
    title: str = ""  # tells it from all other blocks that it may stand beside

    @property
    def column(self) -> Column:
        return self.table.columns[self.place]

    @property
    def protocol(self) -> str:
        """With its version: "knn@1"."""
        return self.column.label

    @property
    def data(self) -> str:
        """The data set that it was evaluated on."""
        return self.column.data or self.trained_on

    @property
    def trained_on(self) -> str:
        return self.table.setting.data

    @property
    def fingerprint(self) -> str:
        """Of the data evaluated on."""
        return self.column.tested_on or self.table.setting.fingerprint

    @property
    def definition(self) -> tuple[str, str]:
        """What is the same in blocks of one protocol."""
        return self.column.label, self.column.fields

    @property
    def own(self) -> bool:
        """Whether it was evaluated on what was pre-trained on."""
        return self.fingerprint == self.table.setting.fingerprint

    def cells(self) -> dict[tuple[str, str], Cell]:
        """By variant and version, the cells of all methods; no floor, ceiling or older version."""
        found: dict[tuple[str, str], Cell] = {}
        for row in self.table.rows:  # best first
            if row.role == "method" and not row.older and row.group == self.group:
                found.setdefault((row.variant, row.version), row.cells[self.place])
        return found


@dataclass(frozen=True, eq=False)
class Family:
    """Blocks of rows whose settings differ in nothing but the data. setting: what they share, in words."""

    setting: str
    blocks: tuple[Block, ...]


def families(tables: Sequence[Table]) -> list[Family]:
    """Blocks that belong together, in order of tables and columns.

    Rows that stand in groups are compared within their group, at a level of cost within that level. Only the
    newest definition of a protocol counts, as in the first table of a setting.
    """
    found: dict[str, list[Block]] = defaultdict(list)
    words: dict[str, str] = {}
    seen = set()
    for table in tables:
        for group, rows in groupby(table.rows, key=lambda row: row.group):
            setting = next(rows).setting
            held, shown = setting.identity(), setting.words()
            if table.level:
                held["budget"] = shown["budget"] = table.level.title
            own = canonical([held, group])
            if own in seen:
                continue
            seen.add(own)
            del held["fingerprint"]
            shared = canonical([held, group])
            form = LABEL_RELEASED if setting.released else LABEL
            words[shared] = " · ".join(filter(None, [form.partition(" · ")[2].format(**shown), group]))
            blocks = [Block(table, group, place) for place, c in enumerate(table.columns) if c.ranked]
            found[shared] += [b for b in blocks if any(c.state == "value" for c in b.cells().values())]
    return [Family(words[shared], tuple(_titled(blocks))) for shared, blocks in found.items() if blocks]


def _titled(blocks: Sequence[Block]) -> list[Block]:
    """The same, each with a title of its own."""
    titles = [f"{block.protocol} on {block.data}" for block in blocks]
    titles = _apart(titles, [_with_origin(*pair) for pair in zip(titles, blocks, strict=True)])
    titles = _apart(titles, [f"{title} ({number})" for number, title in enumerate(titles, start=1)])
    return [replace(block, title=title) for block, title in zip(blocks, titles, strict=True)]


def _with_origin(title: str, block: Block) -> str:
    return title if block.table.setting.released else f"{title}, pre-trained on {block.trained_on}"


def _apart(short: Sequence[str], long: Sequence[str]) -> list[str]:
    """The short name of each, the long one of those whose short name is not theirs alone."""
    names = Counter(short)
    return [brief if names[brief] == 1 else full for brief, full in zip(short, long, strict=True)]


def once(blocks: Sequence[Block], *, each_protocol: bool) -> tuple[Block, ...]:
    """One block a data set (and protocol), in order: the one pre-trained on that very data, or the first."""
    kept: dict[tuple[str, ...], Block] = {}
    for block in blocks:
        key = (block.fingerprint, *(block.definition if each_protocol else ()))
        if key not in kept or (block.own and not kept[key].own):
            kept[key] = block
    return tuple(kept.values())


def complete(blocks: Sequence[Block]) -> tuple[pd.DataFrame, LeftOut]:
    """Scores of the methods that have a number in every block, and what each of the others lacks.

    float64, index method, columns the blocks' titles.
    """
    found = [block.cells() for block in blocks]
    methods = list(dict.fromkeys(method for cells in found for method in cells))
    variants = Counter(variant for variant, _ in methods)
    scores, left_out = {}, []
    for variant, version in methods:
        name = f"{variant} (version {version})" if variants[variant] > 1 else variant
        cells = [own.get((variant, version)) for own in found]
        holes = [
            f"{block.title}: {cell.reason if cell else 'not in its table'}"
            for block, cell in zip(blocks, cells, strict=True)
            if cell is None or cell.state != "value" or math.isnan(cell.value)
        ]
        if holes:
            left_out.append((name, holes[0] + (f" and {len(holes) - 1} more" if len(holes) > 1 else "")))
        else:
            scores[name] = [cell.value for cell in cells if cell]
    titles = [block.title for block in blocks]
    frame = pd.DataFrame.from_dict(scores, orient="index", columns=titles, dtype=float)
    frame.index.name = "method"
    return frame, tuple(left_out)
