"""Two numbers differ: the reason that is named must be the reason, and chance must be called chance."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats as scipy_stats

from mimbench import cli, records
from mimbench.errors import UserError
from mimbench.outcomes import Hits, Overlaps, Values
from mimbench.repro.compare import Boards, Comparison, compare
from mimbench.repro.differences import differences, shown
from mimbench.repro.gap import difference_interval, gap

from ..board.synthetic import Board

HERE = {
    "python": "3.11.7",
    "versions": {"mimbench": "0.1.0", "torch": "2.13.0", "numpy": "2.4.6"},
    "cpu": "a CPU",
    "torch_threads": 1,
    "source": {"commit": "a" * 40, "changed": False},
}
ELSEWHERE = {**HERE, "versions": {**HERE["versions"], "torch": "2.6.0"}, "torch_threads": 8}


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path / "a")


@pytest.fixture
def other(tmp_path: Path) -> Board:
    return Board(tmp_path / "b")


def kept(board: Board, record, **changes) -> str:
    """The file of a record that was changed."""
    return str(records.write(board.folder, record.model_copy(update=changes)))


def look(a: str, b: str) -> Comparison:
    found = compare(a, b)
    assert isinstance(found, Comparison)
    return found


def said(found: Comparison) -> str:
    return "\n".join(found.verdict)


def test_settings_that_differ_make_it_a_different_question(board):
    a = board.evaluate("mae", 0.7, settings={"mask_ratio": 0.75})
    b = board.evaluate("mae[mask_ratio=0.9]", 0.5, settings={"mask_ratio": 0.9})
    found = look(kept(board, a, environment=HERE), kept(board, b, environment=ELSEWHERE))
    assert "settings differ in settings.mask_ratio: a different question" in said(found)
    assert "more than chance over the test images; settings.mask_ratio is the likeliest reason" in said(found)
    assert "code, versions or machine differ too, in torch, torch_threads" in said(found)
    assert [d.name for d in found.differences] == ["settings.mask_ratio", "torch", "torch_threads"]


def test_what_follows_from_another_method_is_no_other_code(board):
    pair = []
    for name, role in (("mae", "method"), ("supervised", "ceiling")):
        record = board.evaluate(name, 0.7)
        content = {**record.content, "role": role, "external": "labels" if role == "ceiling" else "none"}
        pair.append(record.model_copy(update={"content": content, "environment": HERE}))
    found = differences(*pair)
    assert ("method", "method") in [(d.kind, d.name) for d in found]
    assert not [d for d in found if d.kind == "code"]


def test_the_likeliest_explanation_comes_first(board):
    a = board.evaluate(
        "mae", 0.7, cost={"wall_seconds": 1.0}, selection={"candidates": [{"lr": 1}], "chosen": 0}
    )
    b = board.with_setting(batch_size=8).evaluate(
        "mae", 0.5, 3, protocol="knn", cost={"wall_seconds": 2.0}, fields={"k": 1}, needs={"1" * 16: "2" * 64}
    )
    found = differences(
        a.model_copy(update={"environment": HERE}), b.model_copy(update={"environment": ELSEWHERE})
    )
    kinds = ["question", "setting", "seed", "weights", "library", "hardware", "choice", "cost"]
    assert list(dict.fromkeys(d.kind for d in found)) == kinds
    assert [d.name for d in found if d.kind == "question"] == ["protocol"]  # its fields go without saying
    assert shown("0" * 64) == "00000000…"


def test_same_content_elsewhere_is_called_not_reproducible(board, other):
    first = board.evaluate("mae", 0.7)
    again = other.evaluate("mae", 0.66)
    assert first.id == again.id
    found = look(kept(board, first, environment=HERE), kept(other, again, environment=ELSEWHERE))
    assert "other surroundings: not reproducible bit for bit across torch, torch_threads" in said(found)
    found = look(kept(board, first, environment=HERE), kept(other, again, environment=HERE))
    assert "nothing recorded explains the gap" in said(found)
    found = look(kept(board, first, environment=HERE), kept(other, first, environment=ELSEWHERE))
    assert found.equal
    assert "the same came out, bit for bit, although torch, torch_threads differ" in said(found)


@pytest.mark.parametrize(("accuracy", "verdict"), [(0.72, "within"), (0.4, "larger than")])
def test_a_gap_is_held_against_the_spread_over_seeds(board, other, accuracy, verdict):
    for seed, value in enumerate([0.70, 0.68, 0.72]):
        first = board.evaluate("mae", value, seed)
    again = other.evaluate("mae", accuracy, 7)
    found = look(str(records.path_of(board.folder, first.id)), str(records.path_of(other.folder, again.id)))
    apart = scipy_stats.t.ppf(0.975, 2) * 2**0.5 * np.std([0.70, 0.68, 0.72], ddof=1)
    assert found.gap.seeds_apart == pytest.approx(apart)
    assert f"the difference is {verdict} the spread over seeds" in said(found)


def test_without_other_seeds_their_spread_is_not_made_up(board, other):
    a, b = board.evaluate("mae", 0.7), other.evaluate("mae", 0.5, 1)
    found = look(*(str(records.path_of(of.folder, r.id)) for of, r in ((board, a), (other, b))))
    assert found.gap.seeds_apart is None
    assert "is not known: no row here has several; run both with --seeds 0,1,2" in said(found)


def test_the_interval_of_a_gap_is_student_s_paired_one():
    rng = np.random.default_rng(3)
    a, b = rng.normal(0.5, 0.2, (2, 40))
    low, high = difference_interval([Values(a)], [Values(b)])
    reference = scipy_stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (low, high) == pytest.approx((reference.low, reference.high))
    hits = rng.random((4, 60)) < 0.6
    low, high = difference_interval([Hits(hits[0]), Hits(hits[1])], [Hits(hits[2]), Hits(hits[3])])
    reference = scipy_stats.ttest_rel(hits[:2].mean(0), hits[2:].mean(0)).confidence_interval(0.95)
    assert (low, high) == pytest.approx((reference.low, reference.high))


def test_a_gap_in_mean_iou_has_an_interval_around_it():
    rng = np.random.default_rng(4)
    union = rng.integers(50, 100, (30, 3))
    a, b = (Overlaps((union * share).astype(int), union) for share in (0.8, 0.5))
    low, high = difference_interval([a], [b])
    assert low < a.score - b.score < high
    assert difference_interval([a], [a]) == (0.0, 0.0)


def test_other_test_images_have_no_gap_between_them(board):
    a = board.evaluate("mae", 0.7)
    b = board.evaluate("mae", 0.6, data={"name": "cats", "fingerprint": "ca" * 32, "task": "classification"})
    assert gap([a], [b]) == "they were tested on different images"
    found = look(*(str(records.path_of(board.folder, r.id)) for r in (a, b)))
    assert (found.gap, found.verdict[0]) == (None, "they were tested on different images")
    assert found.differences[0].name == "test images"


def test_failures_and_pretrainings_are_compared_without_a_number(board, other):
    a, b = board.evaluate("mae", 0.7), other.evaluate("mae", error="no memory")
    found = look(*(str(records.path_of(of.folder, r.id)) for of, r in ((board, a), (other, b))))
    assert "failed: no memory" in found.verdict[0]
    one, two = board.pretrain("mae"), other.pretrain("mae", 1)
    found = look(*(str(records.path_of(of.folder, r.id)) for of, r in ((board, one), (other, two))))
    assert "no evaluations" in found.verdict[0]


def test_a_record_edited_by_hand_is_said_first(board, other):
    a, b = board.evaluate("mae", 0.7), other.evaluate("mae", 0.7)
    found = look(kept(board, a, metrics={"top1": 0.9}), str(records.path_of(other.folder, b.id)))
    assert "it says top1 0.900000" in found.verdict[0]
    assert not found.equal


def boards(board: Board, other: Board) -> Boards:
    for seed in (0, 1):
        board.evaluate("mae", 0.7 + seed / 100, seed)
        other.evaluate("mae", 0.6 + seed / 100, seed)
    other.evaluate("mae", 0.9, 2)  # has no partner
    board.evaluate("beit", 0.5)
    board.evaluate("simmim", 0.5)
    other.with_setting(batch_size=8).evaluate("simmim", 0.5)
    other.evaluate("hpm", 0.5)
    found = compare(str(board.folder), str(other.folder))
    assert isinstance(found, Boards)
    return found


def test_folders_are_compared_row_by_row_over_the_seeds_that_both_have(board, other):
    found = boards(board, other)
    mae, simmim = found.rows
    assert mae.row == "mae · linprobe · parquet:imagenette128"
    assert mae.a.seeds == mae.b.seeds == (0, 1)
    assert mae.gap.difference == pytest.approx(0.1)
    assert "settings differ in batch_size: a different question" in said(simmim)
    assert [name.split(" ")[0] for name in (*found.only_a, *found.only_b)] == ["beit", "hpm"]


def test_rows_that_could_be_paired_in_two_ways_are_not_paired(board, other):
    board.evaluate("mae", 0.5)
    for batch in (8, 16):
        other.with_setting(batch_size=batch).evaluate("mae", 0.5)
    found = compare(str(board.folder), str(other.folder))
    assert (found.rows, len(found.only_a), len(found.only_b)) == ((), 1, 2)


def test_the_command_prints_and_writes_json(board, other, capsys, monkeypatch):
    boards(board, other)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["mimbench", "compare", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code or 0, capsys.readouterr()

    status, told = run(str(board.folder), str(other.folder))
    assert status == 0
    assert "2 rows in both, 1 of them equal bit for bit" in told.out
    assert "only in A: beit" in told.out
    status, told = run(str(board.folder), str(other.folder), "--format=json")
    assert len(json.loads(told.out)["rows"]) == 2
    file = next(iter((board.folder / "records").iterdir()))
    assert "nothing recorded differs" in run(str(file), str(file))[1].out
    status, told = run(str(file), str(other.folder))
    assert status == 2
    assert "compare two records or two folders" in told.err
    with pytest.raises(UserError, match="no record nowhere"):
        compare("nowhere", str(file))
