"""Results of any kind: mean IoU, plain numbers, what does not rank, what is flagged."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from mimbench import records
from mimbench.board import load, summary, tables
from mimbench.errors import UserError
from mimbench.outcomes import Outcomes, Overlaps, Values
from mimbench.report import text

from .synthetic import Board, only, printed


def overlaps(quality: float, images: int = 60, key: int = 0) -> Overlaps:
    rng = np.random.default_rng(key)
    unions = rng.integers(1, 5000, size=(images, 8)) * (rng.random((images, 8)) < 0.4)
    errors = np.random.default_rng([key, int(1000 * quality)]).normal(0, 0.1, unions.shape)
    return Overlaps((unions * np.clip(quality + errors, 0, 1)).astype(int), unions)


def segment(board: Board, variant: str, quality: float, seed: int = 0, **changes) -> Outcomes:
    outcomes = overlaps(quality, key=seed)
    given = {"protocol": "upernet", "fields": {"steps": 100}, **changes}
    board.evaluate(variant, seed=seed, outcomes=outcomes, metrics={"miou": outcomes.score}, **given)
    return outcomes


def test_mean_iou_has_an_interval_ranks_and_percent(board):
    found = {v: segment(board, v, q) for v, q in (("mae", 0.7), ("beit", 0.69), ("random", 0.3))}
    table = only(board)
    cells = {row.variant: row.cells[0] for row in table.rows}
    for variant, outcomes in found.items():
        cell = cells[variant]
        assert cell.value == pytest.approx(outcomes.score)
        assert cell.low < cell.value < cell.high
        assert cell.images == 60
    assert cells["random"].rank == "3"
    assert 0 < cells["random"].p_above < 0.05
    assert table.columns[0].heading == "miou %"
    assert f"{100 * cells['mae'].value:.1f}" in printed(board)


def test_seeds_of_mean_iou_are_averaged_and_their_images_move_together(board):
    outcomes = [segment(board, "mae", 0.6, seed) for seed in (0, 1)]
    cell = only(board).rows[0].cells[0]
    assert cell.value == pytest.approx(np.mean([o.score for o in outcomes]))
    assert cell.spread == pytest.approx(np.std([o.score for o in outcomes], ddof=1))
    assert cell.low < cell.value < cell.high


def test_the_interval_of_a_share_stays_between_nothing_and_all(board):
    values = np.append(np.ones(19), 0.8)
    board.evaluate("mae", outcomes=Values(values), metrics={"mAP": values.mean()})
    board.evaluate("beit", outcomes=Values(1 - values), metrics={"mAP": 1 - values.mean()})
    cells = [row.cells[0] for row in only(board).rows]
    assert [(cell.low > 0, cell.high < 1) for cell in cells] == [(True, False), (False, True)]
    assert (cells[0].high, cells[1].low) == (1, 0)


def test_a_record_that_contradicts_its_own_areas_is_refused(board):
    outcomes = overlaps(0.6)
    record = board.evaluate("mae", outcomes=outcomes, metrics={"miou": outcomes.score + 0.01})
    with pytest.raises(UserError, match=f"records/{record.id}.json says miou"):
        tables(load(board.folder))


def test_damaged_outcomes_name_their_file(board):
    record = board.evaluate("mae", outcomes={"kind": "tracks"}, metrics={"hota": 0.5})
    with pytest.raises(UserError, match=f"records/{record.id}.json is damaged .*'tracks'"):
        tables(load(board.folder))


def test_seeds_with_different_kinds_of_outcomes_are_refused(board):
    board.evaluate("mae", 0.6, seed=0)
    board.evaluate("mae", seed=1, outcomes=Values(np.full(500, 0.5)))
    with pytest.raises(UserError, match="with hits and values"):
        tables(load(board.folder))


def test_a_plain_number_is_not_shown_in_percent(board):
    values = np.random.default_rng(0).normal(30, 4, 50)
    facts = {"unit": "number"}
    board.evaluate("mae", outcomes=Values(values), metrics={"pixels": values.mean()}, facts=facts)
    table = only(board)
    cell = table.rows[0].cells[0]
    shown = printed(board)
    assert f"{values.mean():.1f} [" in shown
    assert "pixels %" not in shown
    assert table.columns[0].shown(cell.low) == f"{cell.low:.1f}"
    frame = summary([table])
    assert (frame.unit[0], frame.value[0]) == ("number", values.mean())


def describe(board: Board, variant: str, value: float) -> None:
    facts = {"unit": "number", "ranked": False}
    board.evaluate(variant, 0.5, protocol="rankme", metrics={"rank": value}, facts=facts, selection={})


def test_what_only_describes_neither_ranks_nor_sorts(board):
    for variant, accuracy, rank in (("mae", 0.7, 10.0), ("beit", 0.5, 90.0), ("hpm", 0.3, 50.0)):
        describe(board, variant, rank)
        board.evaluate(variant, accuracy)
    table = only(board, first=("rankme",))
    assert [row.variant for row in table.rows] == ["mae", "beit", "hpm"]
    assert [row.cells[0].rank for row in table.rows] == ["", "", ""]
    assert [row.cells[1].rank for row in table.rows] == ["1", "2", "3"]
    # Outcomes that the number is no function of say nothing about it, and are no contradiction.
    assert all(math.isnan(row.cells[0].low) for row in table.rows)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.00123, "0.00123"),
        (12.34, "12.3"),
        (4560.2, "4560"),
        (-2.2, "-2.20"),
        (1.23e-7, "1.2e-07"),
        (0.0, "0"),
        (math.nan, "–"),
    ],
)
def test_a_small_number_is_not_shown_as_zero(value, shown):
    assert text.number(value) == shown


def test_everything_that_was_measured_is_kept_in_the_csv(board):
    for seed, rank in ((0, 10.0), (1, 20.0)):
        metrics = {"top1": 0.6, "rankme": rank, **({"extra": 1.0} if seed else {})}
        board.evaluate("mae", 0.6, seed, metrics=metrics)
    assert json.loads(summary([only(board)]).metrics[0]) == {"top1": 0.6, "rankme": 15.0}


# --- flags


def test_a_flag_of_what_only_describes_concerns_the_whole_row(board):
    facts = {"unit": "number", "ranked": False, "flags": ["The encoder has collapsed."]}
    trained = board.pretrain("beit", flags=("The encoder has collapsed.", "It was stopped early."))
    given = {"needs": {trained.id: "1" * 64}}
    described = {"protocol": "diagnostics", "facts": facts, "metrics": {"variance": 0.1}, "outcomes": {}}
    board.evaluate("beit", 0.4, **described, **given)
    board.evaluate("beit", 0.4, **given)
    table = only(board)
    assert table.flags == [("beit", "The encoder has collapsed."), ("beit", "It was stopped early.")]
    assert "beit‡ " in printed(board)
    assert "40.0‡" not in printed(board)


def test_a_flag_stands_beside_its_number_and_is_told_below(board):
    board.evaluate("mae", 0.6)
    board.evaluate("beit", 0.4, facts={"flags": ["The encoder has collapsed."]})
    table = only(board)
    assert table.flags == [("beit, linprobe@1", "The encoder has collapsed.")]
    shown = printed(board)
    assert "40.0‡" in shown
    assert "60.0 " in shown
    assert "‡ beit, linprobe@1: The encoder has collapsed." in shown
    assert summary([table]).set_index("variant").flagged.to_dict() == {
        "beit": "The encoder has collapsed.",
        "mae": "",
    }


def test_a_flag_names_its_seeds_where_it_does_not_hold_for_all(board):
    for seed in (0, 1, 2):
        flags = ["Always."] + (["Sometimes."] if seed else [])
        board.evaluate("mae", 0.6, seed, facts={"flags": flags})
    assert only(board).rows[0].cells[0].flags == ("Always.", "Sometimes. (seed 1, 2)")


def test_flags_that_are_no_sentences_are_refused_by_name(board):
    record = board.evaluate("mae", 0.6, facts={"flags": 3})
    with pytest.raises(UserError, match=rf"records/{record.id}.json is damaged \(facts.flags"):
        load(board.folder)


def test_records_from_before_there_were_units_are_shares_that_rank(board):
    for variant, accuracy in (("mae", 0.6), ("beit", 0.3)):
        record = board.evaluate(variant, accuracy)
        outcomes = {k: v for k, v in record.outcomes.items() if k != "kind"}
        records.write(
            board.folder, record.model_copy(update={"facts": {"metric": "top1"}, "outcomes": outcomes})
        )
    assert [row.cells[0].rank for row in only(board).rows] == ["1", "2"]
    assert "60.0" in printed(board)
