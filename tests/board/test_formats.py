"""LaTeX and Markdown: what a paper and a repository read, with names that stay names."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from markdown_it import MarkdownIt
from pylatexenc.latex2text import LatexNodes2Text
from pylatexenc.latexwalker import LatexEnvironmentNode, LatexMacroNode, LatexWalker

from mimbench.board import FORMATS, Layout, load, tables, write
from mimbench.errors import UserError
from mimbench.report.latex import escape, latex
from mimbench.report.markdown import markdown

from .synthetic import COST, only

HOSTILE = (
    "mae[mask_ratio=0.9]",
    r"\input{x}",
    r"\\[1cm] \end{tabular} % gone",
    "%",
    "_a_ *b* `c` **d**",
    "$x^2$ ~ & # {} {{",
    "a | b || c",
    "<script>alert(1)</script> &amp;",
    "[here](https://evil.example) ![x](y) www.evil.example https://evil.example",
    "=1+1 -- --- '' ,, ?` !`",
    "12. list",
    "- list + list",
    "two\nlines\r\n| x | y |",
    "Vögel, 日本 → λ",
)


# --- LaTeX


def nodes_of(text: str) -> list:
    """Parsed by a library that knows LaTeX; raises where braces or environments do not match."""
    nodes, _, _ = LatexWalker(text, tolerant_parsing=False).get_latex_nodes()
    return nodes


def all_nodes(nodes) -> list:
    found = []
    for node in nodes or []:
        if node is None:
            continue
        found.append(node)
        found += all_nodes(getattr(node, "nodelist", None))
        arguments = getattr(node, "nodeargd", None)
        found += all_nodes(arguments.argnlist if arguments else None)
    return found


def environment(text: str, name: str) -> LatexEnvironmentNode:
    (found,) = [
        n
        for n in all_nodes(nodes_of(text))
        if isinstance(n, LatexEnvironmentNode) and n.environmentname == name
    ]
    return found


def rows_of(text: str) -> list[list[str]]:
    """Cells of the only table, in plain text, by an own reading: split at unescaped & and at \\\\."""
    inner = re.search(r"\\begin\{tabular\}\{[^}]*\}\n(.*?)\\end\{tabular\}", text, re.DOTALL)[1]
    lines = [line for line in inner.split("\n") if line.endswith(r"\\")]
    plain = LatexNodes2Text(math_mode="text")
    return [
        [plain.latex_to_text(cell).strip() for cell in re.split(r"(?<!\\) & |(?<=\}) & ", line[:-2])]
        for line in lines
    ]


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_becomes_latex(name):
    written = escape(name)
    macros = {n.macroname for n in all_nodes(nodes_of(written)) if isinstance(n, LatexMacroNode)}
    assert not macros & {"input", "end", "begin", "\\", "include", "write"}
    # Of the ten characters that mean something to TeX none is left but as the encoder's own.
    rest = re.sub(r"\\(?:[a-zA-Z]+|[%&#_${}\"'`^~])", "", written)
    assert not re.search(r"[%&#_$^~\\]", rest)
    assert rest.count("{") == rest.count("}")
    assert "\n" not in written


@pytest.mark.parametrize("name", [name for name in HOSTILE if name.isascii() and not set("\n|<") & set(name)])
def test_an_escaped_name_reads_as_the_name(name):
    read = LatexNodes2Text(math_mode="text", keep_comments=True).latex_to_text(escape(name))
    assert read.replace("ˆ", "^") == name  # the reader's own sign for \textasciicircum


def test_what_latex_has_no_sign_for_is_told_by_its_code_point():
    assert escape("日") == r"{\texttt{U+65E5}}"
    assert escape("a\u202eb\u0000c\u200d") == "abc"


def fill(board, names=("mae", "beit", "hpm")) -> None:
    for i, name in enumerate(names):
        for seed in (0, 1):
            board.evaluate(name, 0.5 + i / 10, seed, cost={**COST, "flops": 1e15 * (1 + i)})
        if i:
            board.evaluate(name, 0.4, 0, protocol="knn")
    for seed in (0, 1):
        board.evaluate("random", 0.3, seed, role="floor")
        board.evaluate("supervised", 0.9, seed, role="ceiling", external="labels")


def test_a_latex_table_has_its_parts_and_every_row_its_columns(board):
    fill(board)
    board.evaluate("tinymim", 0.2, external="teacher", sources="teacher mae")
    text = latex([only(board, by=("linprobe",))])
    for part in ("table", "tabular", "adjustbox", "minipage"):
        assert environment(text, part)
    rows = rows_of(text)
    assert {len(row) for row in rows} == {5}
    assert rows[0][:3] == ["Method", "linprobe@1", "knn@1"]
    body = text.split(r"\midrule")
    assert "random" in body[2]  # floor and ceiling below a rule of their own
    assert "supervised" in body[2]
    assert "random" not in body[1]
    assert r"\textbf{70.0}" in body[1]
    assert text.count(r"\textbf{") == 2  # the best, and what the caption says of it
    assert r"\pm" in body[1]
    assert "(teacher mae)" in body[1]
    assert "(ceiling, labels)" in body[2]
    caption = re.search(r"\\caption\{(.*)\}\n", text)[1]
    for fact in ("10 epochs", "batch 64", "95 {\\%} interval", "2 seeds"):
        assert fact in caption


def test_holes_are_dashes_that_lead_to_their_reasons(board):
    fill(board)
    text = latex([only(board)])
    letters = dict(re.findall(r"\\textsuperscript\{([a-z]+)\} (.*?)(?:\\par)?\n", text))
    assert letters["a"] in ("not run", "1 of 2 seeds")
    assert set(letters.values()) >= {"not run", "1 of 2 seeds"}
    dashes = re.findall(r"\\textendash\\textsuperscript\{([a-z]+)\}", text)
    assert len(dashes) == sum(c.state != "value" for row in only(board).rows for c in row.cells)
    assert set(dashes) <= set(letters)


def test_a_tie_with_the_best_is_marked_and_the_better_one_bold(board):
    hits = board.hits(0.6, 0)
    other = hits.copy()
    other[hits.argmax()] = False
    board.evaluate("mae", hits=hits)
    board.evaluate("hpm", hits=other)
    text = latex([only(board)])
    assert re.search(r"\\textbf\{60\.0\}\\textsuperscript\{=\}", text)
    assert re.search(r"& 59\.8\\textsuperscript\{=\}", text)
    assert "tie" in re.search(r"\\caption\{(.*)\}\n", text)[1]


def test_rows_start_with_nothing_that_latex_takes_for_an_option_of_the_row_before(board):
    r"""``\\[`` is a vertical space and ``\\*`` a line that is kept on its page."""
    for name in ("[a]", "*b"):
        board.evaluate(name, 0.5)
    text = latex([only(board)])
    assert not re.search(r"\\\\\s*(?:\\midrule\s*)?[\[*]", text)
    assert {row[0].split(" ")[0] for row in rows_of(text)[2:]} == {"[a]", "*b"}


def test_hostile_names_in_every_place_leave_a_sound_latex_file(board):
    for i, name in enumerate(HOSTILE):
        board.evaluate(name, 0.3 + i / 30, sources=name, external="teacher", facts={"flags": [name]})
        board.evaluate(name, protocol="knn", error=name)
        board.with_setting(data=name, fingerprint=f"{i:064x}").evaluate(name, 0.5)
    text = latex(tables(load(board.folder)))
    assert text.isascii()  # whatever engine reads it, with whatever fonts
    macros = {n.macroname for n in all_nodes(nodes_of(text)) if isinstance(n, LatexMacroNode)}
    assert "input" not in macros
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1 + len(HOSTILE)
    for line in text.split("\n"):
        assert not re.search(r"(?<!\\)(?:\\\\)*%(?!.*mimbench leaderboard)", line) or line.startswith("%")


# --- Markdown


PLAIN = {"text", "text_special", "strong_open", "strong_close", "em_open", "em_close", "html_inline"}


def read_markdown(text: str) -> list:
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)


def cells_of(text: str) -> list[str]:
    """Plain texts of all cells; emphasis and breaks are the only markup allowed."""
    tokens = read_markdown(text)
    found = []
    for before, token in pairwise(tokens):
        if before.type in ("td_open", "th_open"):
            kinds = {child.type for child in token.children}
            assert kinds <= PLAIN, kinds
            assert {c.content for c in token.children if c.type == "html_inline"} <= {"<br>"}
            found.append("".join(c.content for c in token.children if c.type in ("text", "text_special")))
    return found


def test_hostile_names_stay_text_in_markdown(board):
    for i, name in enumerate(HOSTILE):
        board.evaluate(name, 0.3 + i / 30)
        board.evaluate(name, protocol="knn", error=name)
    text = markdown([only(board)])
    cells = cells_of(text)
    for name in HOSTILE:
        assert " ".join(name.split()) in cells
        assert f"– failed: {' '.join(name.split())}" in cells
    per_row = text.split("\n")[5].count("---")
    assert len(cells) == per_row * (1 + len(HOSTILE))
    inline = [child for token in read_markdown(text) for child in token.children or []]
    assert {child.type for child in inline} <= PLAIN - {"em_open", "em_close"}
    assert not re.search(
        r"(?<!\\)https?://|(?<![\\\w])www\.", text
    )  # GitHub links what only looks like a link


def test_markdown_shows_what_the_console_shows(board):
    fill(board)
    board.evaluate("mae", 0.2, 0, method_version=0, needs={"a" * 16: "2" * 64})
    cells = cells_of(markdown([only(board)]))
    for expected in ("supervised (ceiling, labels)", "random (floor)", "– not run", "– 1 of 2 seeds"):
        assert expected in cells
    text = markdown([only(board)])
    assert "1 **70.5** ±" in text or "1 **70.0** ±" in text
    assert "*mae (older version 0)*" in text
    assert "- ±: standard deviation over 2 seeds" in text


# --- all formats


def test_every_format_is_written_and_an_unknown_one_named(board, tmp_path):
    fill(board)
    paths = write(board.folder, tuple(FORMATS), out=tmp_path / "out")
    assert sorted(path.name for path in paths) == [
        "leaderboard.csv",
        "leaderboard.html",
        "leaderboard.md",
        "leaderboard.tex",
    ]
    with pytest.raises(UserError, match="no format is called 'latx'; did you mean latex"):
        write(board.folder, ("latx",))


@pytest.mark.parametrize("name", FORMATS)
def test_label_users_teacher_users_and_older_versions_are_marked_in_every_format(board, name):
    board.evaluate("supervised", 0.9, external="labels", role="ceiling")
    board.evaluate("tinymim", 0.6, external="teacher", sources="teacher mae")
    board.evaluate("beit", 0.5, external="tokenizer", method_version=3)
    board.evaluate("beit", 0.4, external="tokenizer", method_version=2, needs={"a" * 16: "2" * 64})
    board.evaluate("mae", 0.4, protocol="knn", protocol_version=1)
    board.evaluate("mae", 0.3, protocol="knn", protocol_version=2)
    (path,) = write(board.folder, (name,), layout=Layout(first=("linprobe",)))
    text = path.read_text(encoding="utf-8")
    for mark in ("labels", "teacher mae", "tokenizer"):
        assert mark in text
    if name == "csv":
        assert text.count(",True,") >= 2  # an older method, an older protocol
    else:
        assert "older version 2" in text
        assert "older version, now 2" in text
