"""An experiment on the page: points lie where their numbers are, and sentences say what can be told."""

from __future__ import annotations

import html
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence

import numpy as np
import pytest

from mimbench import journal
from mimbench.board import load, tables, write
from mimbench.report import arm_figures, findings
from mimbench.request import About, make_request
from mimbench.stats import ALPHA, difference_p

from .synthetic import Board, only

RATIOS = (0.25, 0.5, 0.75, 0.9)
TITLE = "How much to hide"
AXIS = {"title": TITLE, "question": "How much?", "axis": "mask_ratio", "axis_label": "share hidden"}


def name(ratio: float) -> str:
    return "mae" if ratio == 0.75 else f"mae[mask_ratio={ratio:g}]"


def nested(images: int, accuracy: float) -> np.ndarray:
    """Hits of which every better one includes every worse one: tests depend on the numbers alone."""
    return np.arange(images) < round(accuracy * images)


def measure(
    board: Board, protocol: str, accuracies: Sequence[float], seeds: Sequence[int] = (0, 1, 2)
) -> set[str]:
    """One row a ratio, whose seeds agree; ids of the records."""
    jobs = set()
    for ratio, accuracy in zip(RATIOS, accuracies, strict=True):
        for seed in seeds:
            settings = {"mask_ratio": ratio, "masking": "random"}
            trained = board.pretrain(name(ratio), seed, settings=settings)
            hits = nested(board.images, accuracy)
            made = board.evaluate(
                name(ratio),
                seed=seed,
                protocol=protocol,
                hits=hits,
                settings=settings,
                needs={trained.id: "1" * 64},
            )
            jobs |= {trained.id, made.id}
    return jobs


def ask(board: Board, jobs: set[str], methods: str = "mae", **about) -> About:
    request = make_request({"methods": methods, "about": {**AXIS, **about}})
    journal.note(board.folder, request, sorted(jobs))
    assert request.about is not None
    return request.about


def told(board: Board, about: About, jobs: set[str]) -> list[str]:
    return findings.answer(tables(load(board.folder)), about, jobs)


def page(board: Board) -> str:
    (path,) = write(board.folder, ("html",))
    return path.read_text(encoding="utf-8")


def words(board: Board) -> str:
    """Of the section, without its tags and figures."""
    section = page(board).partition('<section id="experiments"')[2].partition("</section>")[0]
    return html.unescape(re.sub(r"<[^>]+>", " ", re.sub(r"<svg.*?</svg>", "", section, flags=re.S)))


def test_rows_are_placed_by_their_setting_even_where_their_name_does_not_say_it(board):
    jobs = measure(board, "knn", (0.5, 0.6, 0.7, 0.6))
    arms = findings.arms(only(board), ask(board, jobs), jobs)
    assert [(arm.x, arm.value, arm.row.variant) for arm in arms] == [
        (ratio, f"{ratio:g}", name(ratio)) for ratio in RATIOS
    ]


def test_rows_of_other_requests_floors_and_rows_without_the_setting_stay_out(board):
    jobs = measure(board, "knn", (0.5, 0.6, 0.7, 0.6))
    other = board.evaluate("mae[mask_ratio=0.1]", 0.9, settings={"mask_ratio": 0.1}, protocol="knn")
    floor = board.evaluate("random", 0.2, protocol="knn", role="floor", settings={"mask_ratio": 0.75})
    without = board.evaluate("beit", 0.4, protocol="knn")
    arms = findings.arms(only(board), ask(board, jobs), jobs | {floor.id, without.id})
    assert [arm.row.variant for arm in arms] == [name(ratio) for ratio in RATIOS]
    assert other.id not in jobs


def test_a_setting_that_is_no_number_is_never_taken_for_one(board):
    jobs = {
        board.evaluate(f"mae[n={value}]", 0.5, settings={"mask_ratio": value}).id for value in (True, "x")
    }
    assert all(math.isnan(arm.x) for arm in findings.arms(only(board), ask(board, jobs), jobs))
    unset = {board.evaluate("mae[n=null]", 0.5, settings={"mask_ratio": None}).id}
    assert findings.arms(only(board), ask(board, unset), unset) == []


def test_an_optimum_that_differs_between_tasks_is_told(board):
    jobs = measure(board, "knn", (0.9, 0.7, 0.5, 0.3)) | measure(board, "linprobe", (0.3, 0.5, 0.7, 0.9))
    said = told(board, ask(board, jobs), jobs)
    assert said[0] == (
        "knn@1 (top1) is highest at 0.25, 90.0 %. All others are lower beyond chance. "
        "It lies at the end, 0.25: more might lie beyond."
    )
    assert said[1].startswith("linprobe@1 (top1) is highest at 0.9, 90.0 %.")
    assert said[2] == "Tasks differ in their best value: knn@1 wants 0.25, linprobe@1 0.9."


def test_equal_results_tell_nothing(board):
    jobs = measure(board, "knn", (0.7, 0.7, 0.7, 0.7)) | measure(board, "linprobe", (0.7, 0.7, 0.702, 0.7))
    *each, last = told(board, ask(board, jobs), jobs)
    assert len(each) == 2
    assert all("nothing can be told" in sentence for sentence in each)
    assert last == "Nothing can be told about the best value in any task."


def test_a_peak_between_the_ends_is_told_and_shared_by_tasks_that_agree(board):
    jobs = measure(board, "knn", (0.5, 0.7, 0.702, 0.5)) | measure(board, "linprobe", (0.6, 0.6, 0.9, 0.6))
    first, second, last = told(board, ask(board, jobs), jobs)
    assert first == (
        "knn@1 (top1) is highest at 0.75, 70.2 %. Lower beyond chance: 0.25 and 0.9. As good for all one can "
        "tell: 0.5. Both ends are lower: the best lies between them."
    )
    assert "Both ends are lower" in second
    assert last == ("That tasks differ in their best value cannot be told: 0.75 is among the best of each.")


def test_a_difference_that_one_seed_contradicts_is_not_told(board):
    """Images agree that 0.9 is better on average; another seed might turn it round."""
    jobs = measure(board, "knn", (0.3, 0.3, 0.3, 0.3), seeds=(0,))
    for ratio, accuracies in ((0.5, (0.5, 0.5)), (0.75, (0.9, 0.3)), (0.9, (0.55, 0.55)), (0.25, (0.2, 0.2))):
        for seed, accuracy in enumerate(accuracies, start=1):
            hits = nested(board.images, accuracy)
            settings = {"mask_ratio": ratio, "masking": "random"}
            made = board.evaluate(name(ratio), seed=seed, protocol="knn", hits=hits, settings=settings)
            jobs.add(made.id)
    table = only(board)
    about = ask(board, jobs)
    (task,) = findings.tasks(table, findings.arms(table, about, jobs), jobs)
    means = {arm.value: task.cell(arm).value for arm in task.arms}
    assert means["0.75"] == pytest.approx(0.5)
    assert task.best.value == "0.75"
    last = task.arms[-1]
    assert 6 * difference_p(task.cell(task.best).outcomes, task.cell(last).outcomes) < ALPHA
    assert last in task.among_best


def test_more_pairs_ask_for_more(board):
    """A difference just told of two values is not told among four, which have six pairs to pick from."""
    few = {k: nested(board.images, a) for k, a in ((0.25, 0.500), (0.9, 0.514))}  # 7 images: p = 2 / 2 ** 7
    jobs = {
        board.evaluate(name(r), protocol="knn", hits=h, settings={"mask_ratio": r}).id for r, h in few.items()
    }
    about = ask(board, jobs)
    assert "All others are lower beyond chance" in told(board, about, jobs)[0]
    for ratio, count in ((0.5, 252), (0.75, 254)):
        hits = nested(board.images, count / board.images)
        jobs.add(board.evaluate(name(ratio), protocol="knn", hits=hits, settings={"mask_ratio": ratio}).id)
    assert "nothing can be told" in told(board, about, jobs)[0]


def test_groups_are_compared_within_themselves_only(board):
    jobs = {
        board.evaluate(variant, protocol=protocol, hits=nested(board.images, accuracy)).id
        for protocol in ("knn", "linprobe")
        for variant, accuracy in (("mae", 0.5), ("dbot", 0.8), ("beit", 0.2), ("maskfeat", 0.1))
    }
    arms = [
        {"row": "mae", "value": "pixels", "group": "A"},
        {"row": "dbot", "value": "features", "group": "A"},
        {"row": "maskfeat", "value": "HOG", "group": "B"},
        {"row": "beit", "value": "tokens", "group": "B"},
    ]
    about = ask(board, jobs, axis="", axis_label="target", arms=arms)
    said = told(board, about, jobs)
    assert said[0].startswith("A: knn@1 (top1) is highest at features, 80.0 %.")
    assert "B: knn@1 (top1) is highest at tokens, 20.0 %. All others are lower beyond chance." in said
    assert said[-1].startswith("B: That tasks differ in their best value cannot be told: tokens is")
    assert not any("end" in sentence.partition("%")[2] for sentence in said)  # words have no ends


def test_a_floor_that_the_experiment_names_belongs_to_its_group(board):
    floors = {"random": 0.1, "random[like=beit]": 0.15, "pixels": 0.12}
    jobs = {
        board.evaluate(variant, protocol="knn", hits=nested(board.images, accuracy), role=role).id
        for role, own in (
            ("method", {"mae": 0.5, "dbot": 0.8, "beit": 0.2, "maskfeat": 0.3}),
            ("floor", floors),
        )
        for variant, accuracy in own.items()
    }
    arms = [{"row": row, "value": row, "group": group} for row, group in ROWS.items()]
    arms += [{"row": "random", "value": "untrained", "group": "A"}]
    arms += [{"row": "random[like=beit]", "value": "untrained", "group": "B"}]
    about = ask(board, jobs, axis="", arms=arms)
    table = only(board)
    found = findings.tasks(table, findings.arms(table, about, jobs), jobs)
    seen = {task.group: dict(findings.floors(table, task, about, jobs)) for task in found}
    assert seen == {"A": {"untrained": 0.1, "pixels": 0.12}, "B": {"untrained": 0.15, "pixels": 0.12}}


ROWS = {"mae": "A", "dbot": "A", "beit": "B", "maskfeat": "B"}


def circles(svg: str, kind: str) -> list[tuple[float, float, str]]:
    root = ElementTree.fromstring(svg)
    return [
        (float(c.attrib["cx"]), float(c.attrib["cy"]), c[0].text or "")
        for c in root.iter("circle")
        if c.attrib["class"] == kind
    ]


def ruler(svg: str, across: bool) -> np.poly1d:
    """From a place on paper to a number, by the axis' own grid lines and their words."""
    root = ElementTree.fromstring(svg)
    kind = "axis middle" if across else "axis end"
    along = "x" if across else "y"
    marks = [(float(t.attrib[along]), t.text) for t in root.iter("text") if t.attrib["class"] == kind]
    numbers = [(at, float(t)) for at, t in marks if re.fullmatch(r"[0-9.]+", t or "")]
    at, value = zip(*numbers, strict=True)
    return np.poly1d(np.polyfit(at, value, 1))


def test_points_intervals_and_seeds_lie_where_their_numbers_are(board):
    accuracies = (0.31, 0.52, 0.74, 0.48)
    jobs = measure(board, "knn", accuracies)
    table = only(board)
    about = ask(board, jobs)
    (task,) = findings.tasks(table, findings.arms(table, about, jobs), jobs)
    svg = str(arm_figures.drawn(task, task.among_best, [("random", 0.2)], "share hidden"))
    x, y = ruler(svg, across=True), ruler(svg, across=False)
    means = sorted(circles(svg, "method") + circles(svg, "lower"))
    assert [round(float(x(cx)), 2) for cx, _, _ in means] == list(RATIOS)
    # Words of the vertical axis stand 4 below their lines; places are written to a tenth of a unit.
    assert [float(y(cy + 4)) for _, cy, _ in means] == pytest.approx([100 * a for a in accuracies], abs=0.2)
    assert next(title for _, _, title in circles(svg, "method")).startswith("mae: 74.0 [")
    assert len(circles(svg, "seed")) == 3 * len(RATIOS)
    bars = re.findall(r'class="error" d="M([0-9.]+) ([0-9.]+)V([0-9.]+)"', svg)
    cells = [task.cell(arm) for arm in task.arms]
    for (_, top, bottom), cell in zip(sorted(bars, key=lambda bar: float(bar[0])), cells, strict=True):
        drawn = [float(y(float(place) + 4)) for place in (bottom, top)]
        assert drawn == pytest.approx([100 * cell.low, 100 * cell.high], abs=0.2)
    (level,) = re.findall(r'class="level" d="M[0-9.]+ ([0-9.]+)H', svg)
    assert float(y(float(level) + 4)) == pytest.approx(20, abs=0.2)


def test_a_dot_plot_lies_where_its_numbers_are(board):
    values = {"mae": 0.71, "dbot": 0.42, "maskfeat": 0.55}
    jobs = {
        board.evaluate(variant, seed=seed, protocol="knn", hits=nested(board.images, value)).id
        for variant, value in values.items()
        for seed in (0, 1)
    }
    arms = [{"row": variant, "value": f"target {variant}"} for variant in values]
    about = ask(board, jobs, axis="", arms=arms)
    table = only(board)
    (task,) = findings.tasks(table, findings.arms(table, about, jobs), jobs)
    svg = str(arm_figures.drawn(task, task.among_best, [], "target"))
    x = ruler(svg, across=True)
    means = sorted(circles(svg, "method") + circles(svg, "lower"), key=lambda circle: circle[1])
    assert [title.partition(":")[0] for _, _, title in means] == list(values)  # in the order of the file
    assert [float(x(cx)) for cx, _, _ in means] == pytest.approx([71, 42, 55], abs=0.2)
    assert {round(float(x(cx))) for cx, _, _ in circles(svg, "seed")} == {71, 42, 55}
    assert len(circles(svg, "seed")) == 6
    spans = re.findall(r'class="error" d="M([0-9.]+) [0-9.]+H([0-9.]+)"', svg)
    for (low, high), arm in zip(spans, task.arms, strict=True):
        cell = task.cell(arm)
        assert [float(x(float(p))) for p in (low, high)] == pytest.approx(
            [100 * cell.low, 100 * cell.high], abs=0.2
        )


def test_the_page_explains_the_experiment_and_links_its_sources(board):
    jobs = measure(board, "knn", (0.5, 0.6, 0.7, 0.6))
    ask(
        board,
        jobs,
        reading="Peaks say so.",
        found=["Others found 75 %."],
        confounds=["Steps differ."],
        sources=["2111.06377"],
    )
    seen = words(board)
    for sentence in (TITLE, "How much?", "Peaks say so.", "Others found 75 %.", "Steps differ."):
        assert sentence in seen
    assert "knn@1 (top1) is highest at 0.75, 70.0 %" in seen
    assert 'href="https://arxiv.org/abs/2111.06377"' in page(board)


def test_asked_twice_it_stands_once_with_all_its_rows(board):
    first = measure(board, "knn", (0.5, 0.6, 0.7, 0.6))
    second = measure(board, "linprobe", (0.5, 0.6, 0.7, 0.6))
    ask(board, first)
    ask(board, second, methods="mae,beit")
    seen = words(board)
    assert seen.count(TITLE) == 1
    assert "knn@1 (top1)" in seen
    assert "linprobe@1 (top1)" in seen


def test_an_experiment_over_two_folders_is_one(board, tmp_path):
    ask(board, measure(board, "knn", (0.5, 0.6, 0.7, 0.6)))
    other = Board(tmp_path / "other")
    ask(other, measure(other, "linprobe", (0.5, 0.6, 0.7, 0.6)))
    (path,) = write([board.folder, other.folder], ("html",), tmp_path / "both")
    seen = path.read_text(encoding="utf-8")
    assert seen.count(f"<h3>{TITLE}</h3>") == 1
    assert "knn@1 (top1) is highest" in seen
    assert "linprobe@1 (top1) is highest" in seen


def test_a_folder_without_experiments_has_no_section(board):
    jobs = measure(board, "knn", (0.5, 0.6, 0.7, 0.6))
    journal.note(board.folder, make_request({"methods": "mae"}), sorted(jobs))
    assert 'id="experiments"' not in page(board)


def test_an_experiment_without_numbers_says_so(board):
    board.evaluate("mae", 0.5)
    ask(board, {"0" * 16})
    assert "No numbers to compare yet" in words(board)


HOSTILE = '<script>alert(1)</script>{{ 7 * 7 }}"><img src=x onerror=alert(1)>'


def test_hostile_words_stay_words(board):
    jobs = {
        board.evaluate(variant, protocol="knn", hits=nested(board.images, value)).id
        for variant, value in ((f"mae[{HOSTILE}]", 0.5), ("beit", 0.6))
    }
    arms = [
        {"row": f"mae[{HOSTILE}]", "value": HOSTILE, "group": HOSTILE},
        {"row": "beit", "value": "b", "group": HOSTILE},
    ]
    ask(
        board,
        jobs,
        title=HOSTILE,
        question=HOSTILE,
        reading=HOSTILE,
        found=[HOSTILE],
        confounds=[HOSTILE],
        axis_label=HOSTILE,
        sources=[f'1" onclick="alert(1)" x="{HOSTILE}'],
        arms=arms,
    )
    section = page(board).partition('<section id="experiments"')[2].partition("</section>")[0]
    assert "&lt;script&gt;alert(1)" in section
    assert "{{ 7 * 7 }}" in section
    assert not re.search(r"<(script|img)\b|<[^>]*\son\w+=[^>]*>", re.sub(r'"[^"]*"', '""', section))
