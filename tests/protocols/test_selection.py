"""Choosing: by validation, once, in one place."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from protocol_toys import ToyDataset

import protocols
from mimbench.protocol import EvaluationFailed
from mimbench.selection import Scores, grid_edges, select, select_and_test, without_choice


def test_the_best_on_validation_is_chosen_then_the_lower_loss_then_the_first():
    assert select(Scores([0.5, 0.7, 0.6])) == 1
    assert select(Scores([0.5, 0.7, 0.7])) == 1
    assert select(Scores([0.5, 0.7, 0.7], loss=[0.1, 0.9, 0.8])) == 2
    assert select(Scores([0.7, 0.7], loss=[math.inf, 3.0])) == 1


def test_a_diverged_candidate_is_never_chosen():
    assert select(Scores([math.nan, 0.1, math.nan])) == 1
    with pytest.raises(EvaluationFailed, match="none of the 2 candidates"):
        select(Scores([math.nan, math.nan]))


def test_the_edge_of_the_grid_is_flagged_unless_nothing_lies_beyond():
    grid = [{"lr": lr, "k": k} for lr in (0.1, 1.0, 10.0) for k in (1, 5, 20)]
    axes = {"lr": (0, math.inf), "k": (1, 20)}
    assert grid_edges(grid, 4, axes) == ()
    assert grid_edges(grid, 1, axes) == ("lr = 0.1 is the lowest of 0.1, 1, 10",)
    assert grid_edges(grid, 8, axes) == ("lr = 10 is the highest of 0.1, 1, 10",)  # k = 20 is all there are
    assert grid_edges(grid[:1], 0, axes) == ()  # a grid of one has no edge


def test_test_is_opened_after_choosing_and_once():
    data = ToyDataset()
    happened = []

    def validate(split):
        happened.append(split.name)
        assert data.test_openings == 0
        return Scores([0.2, math.nan, 0.4])

    def test(chosen, split):
        happened.append((chosen, split.name))
        return "outcome"

    selection, outcome = select_and_test(data, [{"lr": 1}, {"lr": 2}, {"lr": 3}], validate, test)
    assert happened == ["validation", (2, "test")]
    assert (data.test_openings, outcome, selection.score) == (1, "outcome", 0.4)
    content = json.loads(json.dumps(selection.content(), allow_nan=False))
    assert [c["validation_top1"] for c in content["candidates"]] == [0.2, None, 0.4]
    assert content["chosen"] == 2


def test_no_protocol_opens_test_by_itself():
    files = sorted(Path(protocols.__file__).parent.rglob("*.py"))
    assert {"linprobe.py", "knn.py"} <= {path.name for path in files}
    # diagnostics chooses nothing; a derived data set passes on what is opened
    assert {path.name for path in files if "open_test" in path.read_text()} == {
        "diagnostics.py",
        "derived.py",
    }


def test_the_only_candidate_is_tested_once_and_nothing_passes_for_a_choice():
    data = ToyDataset()
    content, found = without_choice(data, {"lr": 1.0}, lambda split: split, "trained on validation too")
    assert data.test_openings == 1
    assert found is data.test
    assert content["rule"] == "nothing to choose"
    assert content["candidates"] == [{"lr": 1.0}]
    assert not any(name.startswith("validation") for name in content["candidates"][0])
