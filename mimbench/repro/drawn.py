"""The report as a self-contained page and as Markdown, both out of the same data.

The page keeps the leaderboard's rules: no network, no script, a content security policy that allows its own
style by its hash and nothing else. In Markdown, whatever a name holds stays text.
"""

from __future__ import annotations

import re
from typing import Any, get_args

from mimbench import settings
from mimbench.console import duration
from mimbench.report.html import environment, sealed
from mimbench.report.page import MOST_ROWS
from mimbench.repro.checklist import SOURCE
from mimbench.repro.dossier import Answer, Report

# What CommonMark and GitHub's tables give a meaning to, at the start of a line and within it, and what Liquid
# and Jinja do on sites made of Markdown. An underscore in a word means nothing; an address would be a link.
STARTS = re.compile(r"([-+#=]|\d+(?=[.)]))")
SPECIAL = re.compile(
    r"([\\`*{}\[\]<>|~&$!]|(?<![^\W_])_|_(?![^\W_])|(?<=:)/(?=/)|(?<=\bwww)\.)", re.IGNORECASE
)


def html(report: Report) -> str:
    """One page, without anything from elsewhere."""
    templates = environment()
    style = "".join(
        templates.get_template(name).render(most_rows=MOST_ROWS) for name in ("page.css", "report.css")
    )
    return sealed(templates, "report.html", style=style, report=report, **_helpers())


def markdown(report: Report) -> str:
    """The same as Markdown with tables, for a repository or a review."""
    templates = environment(autoescape=False)
    templates.filters |= {"md": escape, "line": escape_line, "fenced": fenced}
    text = templates.get_template("report.md").render(report=report, **_helpers())
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _helpers() -> dict[str, Any]:
    return {
        "show": settings.show,
        "duration": duration,
        "source": SOURCE,
        "groups": lambda items: {
            name: [item for item in items if item.group == name]
            for name in dict.fromkeys(item.group for item in items)
        },
        "counts": lambda items: {
            answer: sum(item.answer == answer for item in items) for answer in get_args(Answer)
        },
    }


def escape(value: Any) -> str:
    """Text that stays the same text within a line or a table cell of Markdown."""
    return SPECIAL.sub(r"\\\1", " ".join(str(value).split()))


def escape_line(value: Any) -> str:
    """Text that stays the same text at the start of a line of Markdown, of a list's item or of a heading."""
    text = escape(value)
    start = STARTS.match(text)
    if start is None:
        return text
    # A number is kept from starting a list by its point, everything else by itself.
    return f"{start[1]}\\{text[start.end() :]}" if start[1].isdigit() else f"\\{text}"


def fenced(text: str, language: str = "") -> str:
    """A code block whose fence is longer than any in ``text``."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
