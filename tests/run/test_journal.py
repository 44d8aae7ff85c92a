"""What was asked must be found again: with it go the records that belong together and how to repeat them."""

from __future__ import annotations

import pytest

from mimbench import journal
from mimbench.errors import UserError
from mimbench.request import make_request

JOBS = ("0" * 16, "1" * 16)


def asked(**options):
    return make_request({"methods": "mae,beit", **options})


def test_what_was_asked_can_be_asked_again(tmp_path):
    about = {"title": "Depth", "question": "How deep?", "axis": "depth"}
    request = asked(seeds="0,1", epochs=2, about=about, out=tmp_path, dry_run=True, workers=3)
    journal.note(tmp_path, request, JOBS)
    (found,) = journal.read(tmp_path)
    again = make_request({**found.options, "about": found.about})
    assert again == request.model_copy(
        update={"out": again.out, "dry_run": False, "workers": None}
    )  # what holds on one machine alone is left out
    assert found.jobs == JOBS


def test_asked_twice_is_noted_once_with_the_first_and_the_last_time(tmp_path):
    for _ in range(2):
        journal.note(tmp_path, asked(), JOBS)
    (found,) = journal.read(tmp_path)
    assert found.first < found.last


def test_other_questions_are_kept_in_their_order(tmp_path):
    for epochs in (3, 1, 2):
        journal.note(tmp_path, asked(epochs=epochs), JOBS)
    assert [found.options["epochs"] for found in journal.read(tmp_path)] == [3, 1, 2]


def test_a_folder_without_requests_is_no_mistake_and_a_damaged_one_is_named(tmp_path):
    assert journal.read(tmp_path) == []
    path = journal.note(tmp_path, asked(), JOBS)
    path.write_text('{"jobs": 3}')
    with pytest.raises(UserError, match=f"{path.name} is damaged"):
        journal.read(tmp_path)
