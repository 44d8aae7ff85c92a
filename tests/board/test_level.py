"""Tables at equal cost: of every method its largest finished run that the level allows, or a hole."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mimbench import records
from mimbench.board import Table, load, make_layout, summary, tables
from mimbench.errors import UserError

from .synthetic import COST, Board, printed


def budget(epochs: float) -> dict:
    return {"budget": {"unit": "epochs", "amount": epochs}}


def at(board: Board, level: str, **options) -> Table:
    (table,) = tables(load(board.folder), make_layout(at=level, **options))
    return table


def run(board: Board, variant: str, epochs: float, accuracy: float, seed: int = 0, cost=None, **changes):
    """A pre-training of some epochs and its evaluation."""
    here, needs = board.with_setting(**budget(epochs)), changes.pop("needs", None)
    spent = {**COST, **(cost or {})}
    trained = here.pretrain(variant, seed, cost=spent, **changes)
    return here.evaluate(
        variant, accuracy, seed, cost=spent, needs=needs or {trained.id: "1" * 64}, **changes
    )


@pytest.mark.parametrize("unit", ["flops", "hours", "epochs"])
@pytest.mark.parametrize("draw", range(6))
def test_each_method_shows_what_trying_all_its_runs_finds(board, unit, draw):
    rng = np.random.default_rng([draw, len(unit)])
    spent: dict[str, dict[float, float]] = {}  # method -> accuracy -> its cost in the unit
    accuracies = iter(rng.permutation(np.arange(100, 400)) / 500)
    for method in ("mae", "beit", "hpm", "ibot"):
        flops, hours = rng.uniform(1e13, 1e14), rng.uniform(0.01, 0.3)
        for epochs in rng.choice(np.arange(1, 40), size=rng.integers(1, 6), replace=False).tolist():
            accuracy = float(next(accuracies))
            run(
                board,
                method,
                epochs,
                accuracy,
                cost={"flops": flops * epochs, "wall_seconds": 3600 * hours * epochs},
            )
            cost = {"flops": flops * epochs, "hours": hours * epochs, "epochs": epochs}[unit]
            spent.setdefault(method, {})[accuracy] = cost
    common = min(max(costs.values()) for costs in spent.values())
    for asked, level in [(f"equal-{unit}", common), (f"equal-{unit}={common / 3:.17g}", common / 3)]:
        table = at(board, asked)
        assert table.level.amount == pytest.approx(level)
        assert len(table.rows) == len(spent)
        for row in table.rows:
            allowed = {
                cost: accuracy for accuracy, cost in spent[row.variant].items() if cost <= 1.02 * level
            }
            if allowed and max(allowed) >= 0.8 * level:
                assert row.cells[0].value == pytest.approx(allowed[max(allowed)])
                assert row.cost["level_share"] == pytest.approx(max(allowed) / level)
            else:
                assert row.cells[0].state == "hole"
                assert math.isnan(row.cells[0].value)
                assert row.cells[0].rank == ""
                nearest = max(allowed) if allowed else min(spent[row.variant].values())
                assert row.cost["level_share"] == pytest.approx(nearest / level)


@pytest.mark.parametrize(
    ("share", "state"), [(0.79, "hole"), (0.81, "value"), (1.019, "value"), (1.021, "hole")]
)
def test_a_run_that_just_passes_the_level_or_nearly_reaches_it_still_stands_for_it(board, share, state):
    """A run ends at the step nearest to its budget; one that was stopped far below is another comparison."""
    run(board, "mae", 10, 0.5, cost={"flops": share * 1e15})
    assert at(board, "equal-flops=1e15").rows[0].cells[0].state == state


def test_the_cost_of_what_was_trained_before_counts(board):
    teacher = {**COST, "flops": 3e15}
    for epochs in (10, 20):
        run(board, "mae", epochs, 0.5, cost={"flops": 1e14 * epochs})
    run(board, "tinymim", 10, 0.9, cost={"flops": 1e15, "external": {"teacher": teacher}}, external="teacher")
    table = at(board, "equal-flops=2e15")
    assert {row.variant: row.cells[0].state for row in table.rows} == {"mae": "value", "tinymim": "hole"}
    assert "smallest run spent 4.00 PFLOP" in printed_at(board, "equal-flops=2e15")


def printed_at(board: Board, level: str) -> str:
    return " ".join(printed(board, width=160, level=make_layout(at=level).level).split())


def test_a_hole_says_what_was_spent_and_what_to_run(board):
    """Costs grow with the budget, tokenizer and teacher included, so its own unit says how far to go."""
    for epochs in (10, 40):
        run(board, "mae", epochs, 0.5, cost={"flops": 1e14 * epochs})
    run(board, "beit", 10, 0.5, cost={"flops": 2e15})
    text = printed_at(board, "equal-flops=4e15")
    assert "Its largest run of at most 4.00 PFLOP spent 2.00 PFLOP" in text
    assert "--epochs 20." in text
    run(board, "beit", 20, 0.6, cost={"flops": 4e15})
    table = at(board, "equal-flops=4e15")
    assert {row.variant: row.cells[0].value for row in table.rows} == {"mae": 0.5, "beit": 0.6}


def test_no_run_is_cut_off_and_none_is_interpolated(board):
    """The 40-epoch run passes through 20 epochs with its learning rate half way; that is no 20-epoch run."""
    run(board, "mae", 20, 0.5)
    run(board, "beit", 40, 0.9)
    table = at(board, "equal-epochs=20")
    assert {row.variant: row.cells[0].state for row in table.rows} == {"mae": "value", "beit": "hole"}


def test_a_larger_run_that_failed_is_no_run_but_is_told(board):
    run(board, "mae", 10, 0.5)
    run(board, "beit", 10, 0.4)
    board.with_setting(**budget(20)).pretrain("beit", error="the loss became NaN")
    table = at(board, "equal-epochs")
    assert {row.variant: row.cells[0].value for row in table.rows} == {"mae": 0.5, "beit": 0.4}
    assert [error for _, error, _ in table.failures] == ["the loss became NaN"]


def test_a_method_that_never_finished_keeps_its_reason(board):
    run(board, "mae", 10, 0.5)
    board.with_setting(**budget(20)).pretrain("beit", error="the loss became NaN")
    reasons = {row.variant: row.cells[0].reason for row in at(board, "equal-epochs").rows}
    assert reasons["beit"] == "failed: the loss became NaN"


def test_no_mean_skips_a_seed_that_the_chosen_run_lacks(board):
    for seed in (0, 1):
        run(board, "mae", 10, 0.5, seed)
    run(board, "beit", 10, 0.9)
    cells = {row.variant: row.cells[0] for row in at(board, "equal-epochs").rows}
    assert cells["beit"].reason == "1 of 2 seeds"


def test_seeds_of_runs_that_are_not_shown_make_no_holes(board):
    for seed in (0, 1, 2):
        run(board, "mae", 10, 0.4, seed)
    run(board, "mae", 20, 0.5)
    run(board, "beit", 20, 0.6)
    run(board, "ibot", 5, 0.1, seed=4)
    table = at(board, "equal-epochs=20")
    assert table.seeds == (0,)
    assert {row.variant: row.cells[0].state for row in table.rows} == {
        "beit": "value",
        "mae": "value",
        "ibot": "hole",
    }


def test_floors_stand_at_every_level_and_set_none(board):
    untrained = {"wall_seconds": 0.0, "flops": 0.0, "images": 0}
    for epochs in (10, 20):
        run(board, "random", epochs, 0.2, cost=untrained, role="floor")
        run(board, "mae", epochs, 0.5 + epochs / 100, cost={"flops": 1e14 * epochs})
    run(board, "supervised", 10, 0.9, cost={"flops": 1e12}, role="ceiling", external="labels")
    table = at(board, "equal-flops")
    assert table.level.amount == pytest.approx(2e15)
    assert {row.variant: row.cells[0].state for row in table.rows} == {
        "mae": "value",
        "random": "value",
        "supervised": "hole",
    }
    (floor,) = [row for row in table.rows if row.role == "floor"]
    assert math.isnan(floor.cost["level_share"])


def test_an_older_version_sets_no_level_and_has_runs_of_its_own(board):
    run(board, "mae", 10, 0.5, cost={"flops": 1e15}, method_version=2)
    run(board, "mae", 10, 0.4, cost={"flops": 9e14}, method_version=1, needs={"a" * 16: "2" * 64})
    run(board, "beit", 10, 0.3, cost={"flops": 2e15})
    run(board, "beit", 5, 0.2, cost={"flops": 1e15})
    table = at(board, "equal-flops")
    assert table.level.amount == pytest.approx(1e15)
    assert [(r.variant, r.older, r.cells[0].value) for r in table.rows] == [
        ("mae", False, 0.5),
        ("beit", False, 0.2),
        ("mae", True, 0.4),
    ]


def test_times_of_several_devices_are_not_compared(board):
    run(board, "mae", 10, 0.5)
    run(board, "beit", 10, 0.5, cost={"device": "a GPU"})
    with pytest.raises(UserError, match="timed on a CPU and a GPU, and times on different devices"):
        at(board, "equal-hours")
    assert len(at(board, "equal-flops").rows) == 2


def test_a_tokenizer_that_was_timed_elsewhere_is_another_device_too(board):
    run(board, "mae", 10, 0.5)
    run(board, "beit", 10, 0.5, cost={"external": {"tokenizer": {**COST, "device": "a GPU"}}})
    with pytest.raises(UserError, match="a CPU and a GPU"):
        at(board, "equal-hours")


def test_what_does_not_say_its_cost_is_a_hole(board):
    run(board, "mae", 10, 0.5)
    board.evaluate("beit", 0.9, cost={"device": "a CPU"})
    cells = {row.variant: row.cells[0] for row in at(board, "equal-flops").rows}
    assert (cells["beit"].state, cells["beit"].reason) == ("hole", "cost unknown")


def test_epochs_of_a_run_with_another_budget_are_counted_in_images(board):
    run(board, "mae", 10, 0.5)
    here = board.with_setting(budget={"unit": "flops", "amount": 1e15})
    record = here.evaluate("beit", 0.6, cost={**COST, "images": 9_900})
    sizes = {"fingerprint": board.setting["fingerprint"], "sizes": {"train": 1000}}
    records.write(board.folder, record.model_copy(update={"data": sizes}))
    shares = {row.variant: row.cost["level_share"] for row in at(board, "equal-epochs=10").rows}
    assert shares == pytest.approx({"mae": 1.0, "beit": 0.99})


def test_everything_says_at_which_cost_the_table_compares(board):
    run(board, "mae", 10, 0.5)
    run(board, "beit", 20, 0.5)
    table = at(board, "equal-epochs")
    assert "equal epochs (at most 10 epochs)" in table.label
    assert "mae (10 epochs)" in printed_at(board, "equal-epochs")
    frame = summary([table])
    assert set(frame.compared_at) == {"equal epochs (at most 10 epochs)"}
    assert frame.set_index("variant").level_share.to_dict() == pytest.approx({"mae": 1.0, "beit": 2.0})
    assert set(frame.budget) == {"10 epochs", "20 epochs"}  # each row's own


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("flops", "equal-flops"),
        ("equal-images", "known are|did you mean"),
        ("equal-flops=much", "write a number above 0"),
        ("equal-hours=0", "write a number above 0"),
        ("equal-epochs=nan", "write a number above 0"),
        ("equal-epochs=inf", "write a number above 0"),
    ],
)
def test_a_wrong_level_is_told_in_a_sentence(asked, told):
    with pytest.raises(UserError, match=told):
        make_layout(at=asked)
