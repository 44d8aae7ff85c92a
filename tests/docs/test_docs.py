"""What the documentation shows must work: every block of every page is run, every link leads somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mimbench import registry, settings
from mimbench.errors import UserError

from .pages import DOCS, ROOT, Page, blocks, commands, pages, pattern, squeezed
from .running import LANGUAGES, NOT_RUN, Runner

PAGES = pages()


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIMBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if p.blocks], ids=lambda page: page.name)
def test_a_reader_who_types_what_a_page_shows_sees_what_it_says(page: Page, tmp_path, monkeypatch):
    run_all(Runner(page, tmp_path, monkeypatch))


def run_all(runner: Runner) -> None:
    try:
        for block in runner.page.blocks:
            runner.run(block)
    finally:
        runner.close()


def test_a_block_that_nobody_runs_cannot_join():
    for page in PAGES:
        for block in page.blocks:
            assert block.language in LANGUAGES, f"{block.place}: nobody runs {block.language!r}"


def test_every_command_that_is_not_run_is_still_shown_somewhere():
    shown = {
        command
        for page in PAGES
        for block in page.blocks
        if block.language == "bash"
        for command in commands(block.text)
    }
    assert set(NOT_RUN) <= shown


# The site ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site as built by the command that CONTRIBUTING.md tells, strictly: no link or anchor is dead."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=-1, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    assert not done.stdout.strip(), done.stdout
    return folder


class Seen(HTMLParser):
    """What of a built page matters here."""

    def __init__(self, text: str):
        super().__init__()
        self.boxes = 0  # of code
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.boxes += tag == "pre"
        if tag in ("script", "img", "iframe", "source", "video"):
            self.fetched.append(given.get("src") or "")
        if tag == "link":
            self.fetched.append(given.get("href") or "")


@pytest.mark.slow
def test_no_box_of_code_escapes_the_tests(site):
    """One that is indented instead of fenced, say, or fenced in a way that is not understood here."""
    for page in PAGES:
        seen = Seen((site / f"{page.name}.html").read_text(encoding="utf-8"))
        made = page.path.read_text(encoding="utf-8").count("\n::: ")  # signatures that mkdocstrings draws
        if not made:
            assert seen.boxes == len(page.blocks), page.name
        else:
            assert not page.blocks, f"{page.name}: signatures and blocks cannot be told apart"


@pytest.mark.slow
def test_the_site_fetches_nothing_from_elsewhere(site):
    built = sorted(site.rglob("*.html"))
    assert len(built) > len(PAGES)
    for path in built:
        for source in Seen(path.read_text(encoding="utf-8")).fetched:
            assert not re.match(r"(https?:)?//", source), f"{path.name} fetches {source}"
    for path in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//", path.read_text(encoding="utf-8")), path


@pytest.mark.slow
def test_every_method_and_protocol_has_a_page_with_all_its_settings(site):
    for folder, found in (("methods", registry.methods()), ("protocols", registry.protocols())):
        listed = (site / folder / "index.html").read_text(encoding="utf-8")
        for key, cls in found.items():
            text = (site / folder / f"{key}.html").read_text(encoding="utf-8")
            assert f'href="{key}.html"' in listed
            for name, _, _ in settings.ranges(cls):
                assert f"<code>{key}.{name}</code>" in text
            for name in getattr(cls, "presets", {}):
                assert f"<code>{key}:{name}</code>" in text


def test_what_is_built_is_not_kept():
    done = subprocess.run(["git", "check-ignore", "-q", "build/site"], cwd=ROOT)
    assert done.returncode in (0, 128), "build/site would be committed"  # 128: no repository here


# The tests themselves ---------------------------------------------------------------------------------


def test_blocks_are_found_wherever_a_fence_may_stand():
    text = 'a\n```python title="x/y.py"\n1\n```\n- list\n\n    ~~~bash\n    ls\n      ls\n    ~~~\n'
    text += "````text\n```\n````\n"
    found = [(b.language, b.title, b.text, b.line) for b in blocks(text)]
    assert found == [
        ("python", "x/y.py", "1\n", 2),
        ("bash", "", "ls\n  ls\n", 7),
        ("text", "", "```\n", 11),
    ]
    with pytest.raises(ValueError, match="never closed"):
        blocks("```python\n1\n")


def test_output_is_compared_by_its_words_and_not_by_its_numbers():
    assert pattern(" mae   2=  68.8 [63.8, 73.4] ").fullmatch(squeezed("mae 1 70.1 [65.0, 75.1]"))
    assert pattern("done in … · top1 0.5").fullmatch(squeezed("done in 1 min 2 s · top1 0.25"))
    assert not pattern("mae 1").fullmatch(squeezed("beit 1"))
    assert not pattern("mae (floor)").fullmatch(squeezed("mae [floor]"))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("```bash\nmimbench run --methods maee --dry-run\n```", "ended with 2"),
        ("```bash\ncurl https://example.org\n```", "nobody runs 'curl'"),
        ("```bash\npip install 'mimbench[nonsense]'\n```", "nonsense"),
        ("```yaml\nmethods: mae\nepoch: 3\n```", "epoch"),
        ("```python\nprint(3)\n```\n```text\nfour\n```", "do not print"),
        ("```ruby\n1\n```", "nobody runs 'ruby'"),
        ('```bash title="x.sbatch"\nif true\n```', "syntax error"),
    ],
)
def test_a_block_that_is_wrong_is_noticed(text, what, tmp_path, monkeypatch):
    path = tmp_path / "page.md"
    path.write_text(text, encoding="utf-8")
    runner = Runner(Page("page", path), tmp_path, monkeypatch)
    with pytest.raises((AssertionError, UserError), match=re.escape(what)):
        run_all(runner)


def test_the_pages_lie_where_mkdocs_looks():
    assert {page.name for page in PAGES} >= {"index", "quickstart", "own-data", "numbers", "cluster"}
    assert DOCS.is_dir()
