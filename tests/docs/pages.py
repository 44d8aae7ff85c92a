"""The pages of ``docs`` as what is tested of them: their code blocks and what the blocks need around them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from mimbench.request import BUDGETS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

FENCE = re.compile(r"^(?P<indent>[ \t]*)(?P<ticks>`{3,}|~{3,})[ \t]*(?P<info>.*)$")


@dataclass(frozen=True)
class Block:
    """A fenced block. language: the word after the fence; title: the file that it is saved as, or ""."""

    page: str
    line: int
    language: str
    title: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Page:
    """A hand-written page. Its front matter says what its blocks are run with:

    tested: what they find in their folder, names to kinds (``folders.KINDS``).
    quick: options that every ``mimbench run`` of the page gets in place of its own, so that what a reader
    runs for hours takes a second here. A budget only stands in for the same one.
    """

    name: str
    path: Path
    tested: dict[str, str] = field(default_factory=dict)
    quick: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def blocks(self) -> list[Block]:
        return blocks(self.path.read_text(encoding="utf-8"), self.name)


def read_page(path: Path) -> Page:
    front: dict[str, Any] = {}
    if match := re.match(r"---\n(.*?)\n---\n", path.read_text(encoding="utf-8"), re.DOTALL):
        front = yaml.safe_load(match[1])
    return Page(
        path.relative_to(DOCS).with_suffix("").as_posix(),
        path,
        front.get("tested", {}),
        front.get("quick", {}),
    )


def pages() -> list[Page]:
    return [read_page(path) for path in sorted(DOCS.rglob("*.md"))]


def blocks(text: str, page: str = "") -> list[Block]:
    """All fenced blocks, also those inside admonitions and lists. Raises ValueError for an open fence."""
    found: list[Block] = []
    start: re.Match[str] | None = None
    content: list[str] = []
    began = 0
    for number, line in enumerate(text.splitlines(), 1):
        match = FENCE.match(line)
        if start is None:
            if match:
                start, content, began = match, [], number
        elif match and match["ticks"].startswith(start["ticks"]) and not match["info"].strip():
            found.append(Block(page, began, *_info(start["info"]), "\n".join(content) + "\n"))
            start = None
        else:
            content.append(line.removeprefix(start["indent"]))
    if start is not None:
        raise ValueError(f"{page}:{began}: a block is opened and never closed")
    return found


def _info(info: str) -> tuple[str, str]:
    """Language and title of ``python title="zoo/one.py"``."""
    language, _, rest = info.strip().partition(" ")
    title = re.search(r'title="([^"]+)"', rest)
    return language, title[1] if title else ""


def commands(text: str) -> list[str]:
    """The commands of a bash block: one a line, a backslash goes on with it, comments left out."""
    joined = re.sub(r"\\\n\s*", " ", text)
    return [line.strip() for line in joined.splitlines() if shlex.split(line, comments=True)]


def quickened(words: list[str], quick: dict[str, Any]) -> list[str]:
    """The words of a ``mimbench run`` with the options of ``quick`` in place of theirs."""
    words = list(words)
    for name, value in quick.items():
        if name in words:
            words[words.index(name) + 1] = str(value)
        elif name.lstrip("-") not in BUDGETS:
            words += [name, str(value)]
    return words


def pattern(line: str) -> re.Pattern[str]:
    """What a line of output may look like: numbers and blanks are free, "…" stands for anything."""
    return re.compile(".*".join(re.escape(squeezed(part)) for part in line.split("…")))


def squeezed(line: str) -> str:
    """A line of output without its numbers and their marks, rules and widths of columns."""
    without = re.sub(r"\d[\d,.]*(e[+-]?\d+)?", "#", re.sub("[─━═]+", "", line))
    return " ".join(re.sub(r"#[=†]+", "#", without).split())
