"""The page in a browser: it sorts, filters and links; it fits a phone; hostile names stay names."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest

from mimbench.board import Layout, write
from mimbench.outcomes import Overlaps
from mimbench.report import text

from .browsing import HOSTILE, Watched
from .synthetic import COST, Board
from .test_pictures import draw

pytestmark = pytest.mark.browser

RANKED = ["supervised", "hpm", "mae", "mae[mask_ratio=0.9]", "beit", "random", "simmim"]


def heading(watched: Watched, text: str, table: int = 1):
    return (
        watched.page.locator(f"#table-{table} th[data-column]").filter(has_text=re.compile(f"^{text}")).first
    )


def test_rows_come_best_first_and_older_versions_last(watched):
    assert watched.names() == [*RANKED, "mae"]
    assert heading(watched, "top1").get_attribute("aria-sort") == "descending"


def test_a_click_sorts_numbers_as_numbers_with_holes_last_both_ways(watched):
    speed = heading(watched, "Speed")
    column = int(speed.get_attribute("data-column"))

    def shown() -> list[float | None]:
        cells = watched.page.locator(
            f"#table-1 table:not(.figures) tbody:first-of-type tr > :nth-child({column + 1})"
        )
        return [float(v) if (v := cell.get_attribute("data-v")) else None for cell in cells.all()]

    for order in ("descending", "ascending"):
        speed.locator("button").click()
        assert speed.get_attribute("aria-sort") == order
        *numbers, hole = shown()
        assert hole is None
        assert numbers == sorted(numbers, reverse=order == "descending")
        assert len(set(numbers)) == 6
    assert heading(watched, "top1").get_attribute("aria-sort") == "none"
    assert watched.names()[-1] == "mae"  # the older version stays below, whatever sorts


def test_the_keyboard_sorts_too(watched):
    heading(watched, "Method").locator("button").focus()
    watched.page.keyboard.press("Enter")
    assert watched.names()[:-1] == sorted(RANKED)
    watched.page.keyboard.press("Space")
    assert watched.names()[:-1] == sorted(RANKED, reverse=True)
    assert watched.names(table=2) == ["mae"]


def test_filters_hide_what_is_not_asked_for_and_say_how_much_is_left(watched):
    page = watched.page
    assert page.locator("#shown").inner_text() == "9 rows"
    page.fill("#filter-name", "MAE")
    assert watched.names() == ["mae", "mae[mask_ratio=0.9]", "mae"]
    assert page.locator("#shown").inner_text() == "4 of 9 rows"
    page.fill("#filter-name", "")
    page.select_option("#filter-uses", "tokenizer")
    assert watched.names() == ["beit"]
    page.select_option("#filter-uses", "labels")
    assert watched.names() == ["supervised"]
    page.select_option("#filter-uses", "")
    page.uncheck("#filter-references")
    assert watched.names() == ["hpm", "mae", "mae[mask_ratio=0.9]", "beit", "simmim", "mae"]
    page.uncheck("#filter-older")
    assert watched.names() == ["hpm", "mae", "mae[mask_ratio=0.9]", "beit", "simmim"]


def test_rows_are_filtered_by_where_the_survey_files_them(watched):
    page = watched.page
    target = page.get_by_label("Target")
    assert target.locator("option").all_inner_texts() == ["any", "features", "pixels", "tokens"]
    target.select_option("pixels")
    assert watched.names() == ["hpm", "mae", "mae[mask_ratio=0.9]"]  # not what no record files
    page.get_by_label("Masking").select_option("random")
    assert watched.names() == ["mae", "mae[mask_ratio=0.9]"]
    page.get_by_label("Scheme").select_option("both")
    assert watched.names() == []
    assert page.locator("#shown").inner_text() == "0 of 9 rows"


def test_a_name_opens_its_card(watched):
    page = watched.page
    card = page.locator(".card", has_text="The paper of hpm")
    assert not card.is_visible()
    page.locator("#table-1 tbody th a", has_text="hpm").click()
    assert card.is_visible()
    assert card.bounding_box()["y"] < 800


def test_every_number_leads_to_records_that_exist(watched, path):
    page = watched.page
    cells = page.locator("td[data-v]")
    assert cells.count() > 60
    linked = page.locator("td[data-v] a[href]")
    assert linked.count() == cells.count()
    reached = set()
    for target in page.locator("main a[href]").evaluate_all(
        "links => links.map(a => a.getAttribute('href'))"
    ):
        if target.startswith("https://"):
            assert target.startswith(("https://arxiv.org/abs/", "https://github.com/"))
        elif target.startswith("#"):
            assert page.locator(f"[id='{target[1:]}']").count() == 1, target
        else:
            assert (path.parent / unquote(target)).is_file(), target
            reached.add(Path(unquote(target)).stem)
    assert reached == {record.stem for record in (path.parent / "records").iterdir()}


def test_columns_of_all_tasks_stand_in_one_table_with_what_to_know(board, browser):
    rng = np.random.default_rng(0)
    unions = rng.integers(1, 5000, size=(40, 8))
    ade = {"name": "ade20k:streets", "fingerprint": "aa" * 32, "task": "segmentation"}
    for variant, share in (("mae", 0.6), ("beit", 0.5)):
        areas = Overlaps((unions * share * rng.random(unions.shape)).astype(int), unions)
        numbers = {"unit": "number", "ranked": False}
        board.evaluate(variant, share, facts={"flags": ["It has collapsed."]} if variant == "beit" else {})
        board.evaluate(variant, share, preset="mae", fields={"choose_on": "test"})
        board.evaluate(
            variant, protocol="rankme", metrics={"rank": 90 * share, "more": 3.0}, outcomes={}, facts=numbers
        )
        miou = {"metrics": {"miou": areas.score}, "outcomes": areas}
        board.evaluate(variant, protocol="upernet", data=ade, fields={}, **miou)
    (html,) = write(board.folder, ("html",), layout=Layout(first=("rankme", "linprobe", "upernet")))
    opened = Watched(browser, html)
    groups = opened.page.locator("th.group").all_inner_texts()
    assert groups[:4] == [
        "rankme@1",
        "linprobe@1",
        "linprobe:mae@1\nchooses on test",
        "upernet@1\non ade20k:streets",
    ]
    heads = [re.sub(r"\s+", " ", head) for head in opened.page.locator("thead th.value").all_inner_texts()]
    assert heads == ["rank ", "top1 % [95 % interval]", "top1 % [95 % interval]", "miou % [95 % interval]"]
    sorts = [head.get_attribute("aria-sort") for head in opened.page.locator("thead th.value").all()]
    assert sorts == ["none", "descending", "none", "none"]  # what does not rank does not sort
    assert opened.names() == ["mae", "beit"]
    cells = opened.page.locator("#table-1 tbody tr").nth(0).locator("td.value")
    assert cells.nth(0).inner_text().strip() == "54.0"
    assert re.fullmatch(r"1\s*\d\d\.\d\s*\[\d\d\.\d, \d\d\.\d\]", cells.nth(3).inner_text())
    text = opened.page.locator("#table-1").inner_text()
    assert "50.0‡" in text
    assert "beit, linprobe@1: It has collapsed." in text
    assert "the best on the 500 test images themselves is shown" in text
    assert "40 test images" in text
    more = opened.page.locator("details", has_text="Everything that rankme@1 measured")
    assert not more.locator("table").is_visible()
    more.locator("summary").click()
    figures = [row.split() for row in more.locator("tr").all_inner_texts()]
    assert figures == [["Method", "rank", "more"], ["mae", "54.0", "3.00"], ["beit", "45.0", "3.00"]]
    assert opened.page.locator("#shown").inner_text() == "2 rows"  # that table is no board
    assert opened.page.locator("#table-1 svg.plot").count() == 3  # against time: computation is equal
    assert opened.complaints == []
    opened.page.close()


def test_a_mean_over_seeds_opens_the_list_of_its_records(watched):
    page = watched.page
    links = page.locator("#row-1-2")
    assert not links.is_visible()
    page.locator("#table-1 tbody tr").nth(1).locator("td.value a").first.click()
    assert links.is_visible()
    assert links.inner_text().count("pre-training") == 2
    assert "linprobe@1 76.0" in links.inner_text()


def test_links_lead_from_another_folder_to_the_records(board, browser, tmp_path):
    board.evaluate("mae", 0.5)
    out = tmp_path / "else where%" / "#1"
    (html,) = write(board.folder, ("html",), out=out)
    opened = Watched(browser, html)
    target = opened.page.locator("td.value a").evaluate("a => a.href")
    assert Path(unquote(urlsplit(target).path)).is_file()
    opened.page.close()


def test_what_is_compared_and_what_differs_stands_above_the_numbers(watched):
    text = watched.page.locator("#table-1").inner_text()
    for expected in (
        "vit_tiny_patch16 at 128 × 128 pixels",
        "budget is 10 epochs",
        "What linprobe does.",
        "500 test images",
        "the best on validation images is tested, once",
        "the loss became NaN at step 12",
    ):
        assert expected in text
    assert watched.page.locator("#table-1 svg.plot").count() == 3
    assert watched.page.locator("#table-1 svg.curve").count() == 5 + 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1600])
def test_the_page_never_scrolls_sideways_and_names_stay_in_sight(browser, path, width, scheme):
    opened = Watched(browser, path, width, color_scheme=scheme)
    page = opened.page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    scroller = page.locator("#table-1 .scroll").first
    scroller.evaluate("element => element.scrollLeft = 400")
    name = page.locator("#table-1 tbody th").first.bounding_box()
    assert 0 <= name["x"] < 40
    assert name["width"] < width / 2
    opened.page.close()


CONTRAST = """() => {
  const channel = c => { c /= 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const ground = element => {
    for (; element; element = element.parentElement) {
      const colour = parse(getComputedStyle(element).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
  };
  const worst = {};
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    const unseen = ["SCRIPT", "TITLE", "OPTION"].includes(element.nodeName.toUpperCase());
    if (!own || unseen || !element.checkVisibility()) continue;
    const style = getComputedStyle(element);
    const colour = element instanceof SVGElement ? style.fill : style.color;
    const [a, b] = [luminance(parse(colour)), luminance(ground(element))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    const key = element.nodeName + "." + (element.getAttribute("class") || "");
    worst[key] = Math.min(worst[key] ?? 99, ratio);
  }
  return worst;
}"""


def test_text_is_readable_in_light_and_dark(browser, path):
    """WCAG 2.2, 1.4.3 (AA): a contrast of 4.5 for text, by its definition of relative luminance."""
    grounds = []
    for scheme in ("light", "dark"):
        opened = Watched(browser, path, color_scheme=scheme)
        worst = opened.page.evaluate(CONTRAST)
        assert len(worst) > 15
        assert {name: ratio for name, ratio in worst.items() if ratio < 4.5} == {}
        grounds.append(opened.page.evaluate("getComputedStyle(document.body).backgroundColor"))
        opened.page.close()
    assert grounds[0] != grounds[1]


def hostile_board(board: Board) -> None:
    """Hostile text wherever a record or a caption beside a picture can carry text."""
    for i, name in enumerate(HOSTILE):
        card = {
            **dict.fromkeys(("paper", "authors", "arxiv", "code", "scheme", "masking", "target"), name),
            **dict.fromkeys(("architecture", "objective", "external", "parity", "recipe", "notes"), name),
            "key": name,
            "name": name,
            "classes": dict.fromkeys(("masking", "target", "architecture", "objective"), name),
        }
        trained = board.pretrain(
            name,
            curve=[{"progress": 0.1, "loss": 1.0}, {"progress": 0.9, "loss": 0.5}],
            card=card,
            flags=[name],
            settings={name: name},
            recipe={"source": name},
            sources=name,
        )
        draw(
            board, f"p{i}", {trained.id: name}, kind=name, title=name, note=name, headings=(name,), data=name
        )
        draw(board, f"q{i}", {trained.id: name}, b"no picture", title=name)
        given = {"settings": {name: name}, "sources": name, "needs": {trained.id: "1" * 64}}
        board.evaluate(
            name,
            0.3 + i / 20,
            fields={name: name},
            cost={**COST, "device": name, "flops": 1e15 * (1 + i)},
            setting={**board.setting, "data": name, "backbone": name},
        )
        board.evaluate(name, 0.3 + i / 20, cost={**COST, "flops": 1e15 * (1 + i)}, **given)
        chosen = {"candidates": [{name: name}, {"lr": 1}], "chosen": 0, "edges": [name], "notes": [name]}
        metrics, summary = {name: 0.5, "other": 0.4}, {"summary": name}
        board.evaluate(
            name, protocol="rank", metrics=metrics, outcomes={}, selection=chosen, facts=summary, **given
        )
        board.evaluate(name, 1.0, protocol="knn", error=name)


@pytest.mark.parametrize("width", [360, 1600])
def test_hostile_names_and_values_are_text_and_nothing_else(browser, hostile, width):
    html = hostile
    opened = Watched(browser, html, width)
    page = opened.page
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    page.mouse.move(300, 500)
    page.fill("#filter-name", "<script>")
    rows = page.locator("table.board tbody tr:visible > th")
    assert {text.split()[0].rstrip("‡") for text in rows.all_inner_texts()} == {HOSTILE[0]}
    page.fill("#filter-name", "")
    page.get_by_label("Target").select_option(HOSTILE[1])
    assert rows.count() == 1
    page.get_by_label("Target").select_option("")
    for head in page.locator("th[data-column] button").all()[:12]:
        head.click()
    assert page.title() == "mimbench leaderboard"
    assert page.locator("h1").all_inner_texts() == ["Leaderboard"]
    assert page.locator("script").count() == 1
    assert page.locator("iframe, object, embed, base, link[rel=stylesheet]").count() == 0
    sources = page.locator("img").evaluate_all("all => all.map((one) => one.src.slice(0, 23))")
    assert sources == ["data:image/webp;base64,"] * len(HOSTILE)
    attributes = page.evaluate(
        "[...document.querySelectorAll('*')].flatMap(e => e.getAttributeNames())"
        ".filter(name => name.startsWith('on') || name === 'style')"
    )
    assert attributes == []
    hrefs = page.locator("a[href]").evaluate_all("links => links.map(a => `${a.protocol}//${a.host}`)")
    # The survey, and sources of published figures.
    assert set(hrefs) <= {"file://", "https://arxiv.org", "https://github.com"}
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for where in (
        "tbody th",
        ".card",
        ".cards summary",
        "#pictures figcaption",
        ".curves figcaption",
        ".flags li",
    ):
        shown = page.locator(where).all_text_contents()
        for name in HOSTILE[:-1]:  # the last one is longer than anybody reads
            assert any(name.replace("\0", "") in text for text in shown), (where, name)  # HTML has no NUL
    assert opened.complaints == []
    assert opened.requests[0] == html.as_uri()
    assert all(url.startswith("data:image/webp") for url in opened.requests[1:])
    opened.page.close()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    board = Board(tmp_path_factory.mktemp("hostile"))
    hostile_board(board)
    (html,) = write(board.folder, ("html",))
    return html


def test_the_policy_stops_what_escaping_might_miss(board, browser):
    """Were a name ever written without escaping, the browser would still not run it."""
    board.evaluate("mae", 0.5)
    (html,) = write(board.folder, ("html",))
    injected = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    html.write_text(html.read_text(encoding="utf-8").replace("<main>", f"<main>{injected}"), encoding="utf-8")
    opened = Watched(browser, html)
    opened.page.wait_for_timeout(50)  # the image fails, its handler would run
    assert opened.page.title() == "mimbench leaderboard"
    assert any("Content Security Policy" in text for text in opened.complaints)
    opened.page.close()


def test_the_page_is_complete_without_script(browser, path):
    opened = Watched(browser, path, java_script_enabled=False)
    assert opened.names() == [*RANKED, "mae"]
    assert not opened.page.locator("#filters").is_visible()
    opened.page.close()


def test_a_name_is_broken_between_its_settings_and_nowhere_becomes_markup():
    assert text.breakable("mae[depth=2,x=<b>]") == "mae[<wbr>depth=<wbr>2,<wbr>x=<wbr>&lt;b&gt;]"
