"""The page can be read and worked without a mouse, without eyes, on a phone and on paper."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

import pytest

from mimbench.board import write

from .browsing import Watched
from .synthetic import Board
from .test_pictures import draw

pytestmark = pytest.mark.browser

RULES = """async () => {
  const rules = { "target-size": { enabled: true } };  // WCAG 2.2, 2.5.8: off by default
  const found = await axe.run(document, { rules, resultTypes: ["violations"] });
  return found.violations.map((v) => `${v.impact} ${v.id}: ${v.nodes[0].html}`);
}"""


@pytest.fixture(scope="module")
def axe() -> str:
    """The script of axe-core, from the package that carries it."""
    found = importlib.util.find_spec("axe_playwright_python")
    if found is None or found.origin is None:
        if os.environ.get("MIMBENCH_REQUIRE_BROWSER") == "1":
            pytest.fail("MIMBENCH_REQUIRE_BROWSER=1, but axe-playwright-python is not installed")
        pytest.skip("axe-playwright-python is not installed")
    return (Path(found.origin).parent / "axe.min.js").read_text(encoding="utf-8")


def complaints(opened: Watched, axe: str) -> list[str]:
    opened.page.evaluate(axe)
    return opened.page.evaluate(RULES)


def test_axe_finds_what_is_wrong(browser, path, axe):
    """Or its silence would say nothing."""
    opened = Watched(browser, path)
    opened.page.evaluate(
        "document.getElementById('filter-name').labels[0].replaceWith(document.createElement('input'))"
    )
    assert any("label" in complaint for complaint in complaints(opened, axe))
    opened.page.close()


@pytest.mark.parametrize(
    ("width", "scheme"), [(360, "light"), (360, "dark"), (1600, "light"), (1600, "dark")]
)
def test_axe_finds_nothing_with_all_folded_parts_opened(browser, illustrated, axe, width, scheme):
    opened = Watched(browser, illustrated, width, color_scheme=scheme)
    opened.page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert opened.page.locator("img").count() == 1
    assert complaints(opened, axe) == []
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    opened.page.close()


@pytest.fixture(scope="module")
def illustrated(tmp_path_factory) -> Path:
    """Fifteen columns, cards, a picture, a second table and a failure on one page."""
    board = Board(tmp_path_factory.mktemp("illustrated"))
    card = {
        "key": "mae",
        "name": "MAE",
        "paper": "A paper",
        "arxiv": "2111.06377",
        "scheme": "reconstruction",
    }
    for variant in ("mae", "mae[mask_ratio=0.9]", "beit"):
        trained = board.pretrain(
            variant, card=card, curve=[{"progress": 0.1, "loss": 1.0}, {"progress": 1, "loss": 0.2}]
        )
        if variant == "mae":
            draw(board, "mae", {trained.id: "mae"})
        for number in range(15):
            board.evaluate(
                variant, 0.3 + number / 40, protocol=f"protocol{number}", needs={trained.id: "1" * 64}
            )
    board.pretrain("simmim", error="the loss became NaN at step 12")
    board.with_setting(image_size=64).evaluate("mae", 0.4)
    (html,) = write(board.folder, ("html",))
    return html


def test_every_control_is_reached_with_tab_and_shows_it(browser, path):
    opened = Watched(browser, path)
    page = opened.page
    wanted = page.evaluate(
        "[...document.querySelectorAll('a[href], button, input, select, summary, [tabindex]')]"
        ".filter((one) => one.checkVisibility()).length"
    )
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    reached = 0
    while page.evaluate("document.activeElement !== document.body") and reached <= wanted:
        reached += 1
        outline = page.evaluate("getComputedStyle(document.activeElement).outline")
        assert "none" not in outline
        assert not re.search(r"\b0px", outline)
        page.keyboard.press("Tab")
    assert reached == wanted
    opened.page.close()


def test_what_has_focus_is_not_behind_the_fixed_head_or_names(browser, path):
    """A sticky head may lie over the link that the keyboard has come to (WCAG 2.2, 2.4.11)."""
    opened = Watched(browser, path, 360)
    page = opened.page
    for link in page.locator("#table-1 tbody td.value a").all()[:8]:
        link.focus()
        seen = link.evaluate(
            "a => { const box = a.getBoundingClientRect();"
            "const top = document.elementFromPoint(box.left + box.width / 2, box.top + box.height / 2);"
            "return a.contains(top) || top.contains(a); }"
        )
        assert seen
    opened.page.close()


def test_folded_parts_open_with_the_keyboard(browser, path):
    opened = Watched(browser, path)
    card = opened.page.locator(".cards details").first
    card.locator("summary").focus()
    opened.page.keyboard.press("Enter")
    assert card.locator(".card").is_visible()
    opened.page.keyboard.press("Space")
    assert not card.locator(".card").is_visible()
    opened.page.close()


def test_a_screen_reader_is_told_what_the_tables_are_and_what_a_filter_left(browser, path):
    opened = Watched(browser, path)
    page = opened.page
    assert page.get_by_role("status").inner_text() == "9 rows"  # a live region
    for table in page.locator("table.board").all():
        assert table.locator("caption").count() == 1
        assert table.locator("thead th:not([scope])").count() == 0
        assert table.locator("tbody tr > th[scope=row]").count() == table.locator("tbody tr").count()
    named = page.get_by_role("region", name=re.compile("^Table of "))
    assert named.count() == 2
    assert page.locator("figure svg:not([aria-label])").count() == 0
    opened.page.close()


PAPER = 1032  # CSS pixels between the margins of A4 landscape: (297 - 24) mm at 96 to the inch


@pytest.mark.parametrize("board_page", ["path", "illustrated"])
def test_nothing_is_cut_off_on_paper(browser, request, board_page):
    html = request.getfixturevalue(board_page)
    opened = Watched(browser, html, PAPER)
    page = opened.page
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.scrollWidth") <= PAPER
    right = page.locator("table, figure, dl, p").evaluate_all(
        "all => Math.max(...all.filter(one => one.checkVisibility())"
        ".map(one => one.getBoundingClientRect().right))"
    )
    assert right <= PAPER
    clipped = page.locator(".scroll").evaluate_all(
        "all => all.filter(one => one.checkVisibility())"
        ".filter(one => getComputedStyle(one).overflow !== 'visible').length"
    )
    assert clipped == 0
    for part in (".card", ".board thead .unit"):
        assert page.locator(part).first.is_visible(), part
    for part in ("#filters", "td.records", ".sort", ".skip"):
        assert not page.locator(part).first.is_visible(), part
    assert page.locator("thead").first.evaluate("one => getComputedStyle(one).position") == "static"
    heights = page.locator(".cards details").evaluate_all("all => all.map(one => one.offsetHeight)")
    assert min(heights) > 40  # opened, though folded on the screen
    assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF")
    opened.page.close()


def test_a_large_table_lays_out_what_is_looked_at(browser, tmp_path):
    """The layout of thousands of rows takes seconds, at the first sight and at every sort."""
    board = Board(tmp_path, images=20)
    for number in range(400):
        board.evaluate(f"m{number:03d}", (number % 20) / 20)
    (html,) = write(board.folder, ("html",))
    opened = Watched(browser, html)
    page = opened.page
    assert page.locator("#shown").inner_text() == "400 rows"
    assert len(opened.names()) == 300
    page.fill("#filter-name", "m39")
    assert sorted(opened.names()) == [f"m39{i}" for i in range(10)]  # wherever they stand
    page.fill("#filter-name", "")
    page.locator("#table-1 th.method button").click()
    assert opened.names() == [f"m{i:03d}" for i in range(300)]  # the first of all, not of those shown before
    button = page.get_by_role("button", name="The first 300 rows are shown. Show all 400")
    button.click()
    assert len(opened.names()) == 400
    assert not button.is_visible()
    assert opened.complaints == []
    opened.page.close()
    without = Watched(browser, html, java_script_enabled=False)
    assert without.page.locator("tbody tr:visible").count() == 400
    without.page.close()


def test_a_page_grows_with_its_records_and_no_faster(tmp_path):
    """Bytes and elements bound what a browser has to do; times depend on who else is at work."""
    sizes = []
    for rows in (40, 80):
        board = Board(tmp_path / str(rows), images=20)
        for number in range(rows):
            trained = board.pretrain(
                f"m{number}", curve=[{"progress": i / 99, "loss": 1.0} for i in range(100)]
            )
            board.evaluate(f"m{number}", (number % 20) / 20, needs={trained.id: "1" * 64})
        (html,) = write(board.folder, ("html",))
        text = html.read_text(encoding="utf-8")
        sizes.append((len(text), len(re.findall(r"<[a-z]", text))))
    (few_bytes, few_nodes), (many_bytes, many_nodes) = sizes
    assert (many_nodes - few_nodes) / 40 <= 45
    assert (many_bytes - few_bytes) / 40 <= 3000
