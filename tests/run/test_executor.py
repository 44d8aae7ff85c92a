"""The local executor: one job's end must not be another's, and nothing is done twice."""

from __future__ import annotations

import errno
import json
import threading

import pytest
from filelock import FileLock

from mimbench import records
from mimbench.errors import UserError
from mimbench.executors import Watch
from mimbench.executors.local import Local
from mimbench.ledger import Ledger

from .pieces import FakeWorkshop, chain, job, plan_of


def fail(error: Exception):
    def raise_it():
        raise error

    return raise_it


def execute(plan, workshop, watch=None):
    return Local().execute(plan, workshop, watch or Watch())


def test_each_job_comes_after_those_it_needs(tmp_path):
    jobs = chain("a")
    workshop = FakeWorkshop(tmp_path)
    summary = execute(plan_of(*jobs), workshop)
    assert workshop.performed == [j.content["method"] for j in jobs]
    assert summary.done == tuple(jobs)
    assert not summary.failed
    assert not summary.not_run


def test_a_second_run_does_nothing(tmp_path):
    plan = plan_of(*chain("a"), *chain("b"))
    execute(plan, FakeWorkshop(tmp_path))
    again = FakeWorkshop(tmp_path)
    assert len(execute(plan, again).done) == 8
    assert again.performed == []


def test_a_crash_is_a_record_and_the_neighbours_go_on(tmp_path):
    a, b = chain("a"), chain("b")
    workshop = FakeWorkshop(tmp_path, {"a": fail(ZeroDivisionError("one\nby zero"))})
    summary = execute(plan_of(*a, *b), workshop)
    assert [(j.id, record.status) for j, record in summary.failed] == [(a[1].id, "failed")]
    record = records.find(tmp_path, a[1].id)
    assert record.error == "ZeroDivisionError: one"
    assert "raise_it" in record.traceback
    assert summary.not_run == (a[2], a[3])
    assert summary.done == (a[0], *b)


def test_a_users_mistake_is_told_in_its_own_words(tmp_path):
    a = job("pretrain", "a")
    execute(plan_of(a), FakeWorkshop(tmp_path, {"a": fail(UserError("k is too large; take 5"))}))
    assert records.find(tmp_path, a.id).error == "k is too large; take 5"


def test_a_failure_is_tried_again_in_the_next_run_and_only_then(tmp_path):
    a, b = job("pretrain", "a"), job("pretrain", "b")
    first = FakeWorkshop(tmp_path, {"a": fail(ValueError("bad luck"))})
    execute(plan_of(a, b), first)
    assert first.performed == ["a", "b"]
    second = FakeWorkshop(tmp_path)
    assert len(execute(plan_of(a, b), second).done) == 2
    assert second.performed == ["a"]


def test_a_result_that_is_not_finite_is_a_failure(tmp_path):
    a, b = job("evaluate", "a"), job("evaluate", "b")
    workshop = FakeWorkshop(tmp_path)
    bad = FakeWorkshop(tmp_path).perform(a, None).model_copy(update={"metrics": {"top1": float("nan")}})
    workshop.faults = {"a": lambda: bad}
    summary = execute(plan_of(a, b), workshop)
    assert summary.done == (b,)
    assert "not finite" in summary.failed[0][1].error
    assert json.loads(records.path_of(tmp_path, a.id).read_text())["metrics"] == {}


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_full_disk_stops_the_run_and_fails_no_job(tmp_path, wrapped):
    cause = OSError(errno.ENOSPC, "No space left on device")
    error = UserError("cannot write x: the disk is full")
    error.__cause__ = cause
    a, b = job("pretrain", "a"), job("pretrain", "b")
    workshop = FakeWorkshop(tmp_path, {"a": fail(error if wrapped else cause)})
    with pytest.raises(UserError, match="disk is full"):
        execute(plan_of(a, b), workshop)
    assert workshop.performed == ["a"]
    assert records.read_folder(tmp_path) == []


def test_ctrl_c_leaves_no_record_and_no_lock(tmp_path):
    a = job("pretrain", "a")
    with pytest.raises(KeyboardInterrupt):
        execute(plan_of(a), FakeWorkshop(tmp_path, {"a": fail(KeyboardInterrupt())}))
    assert records.read_folder(tmp_path) == []
    assert execute(plan_of(a), FakeWorkshop(tmp_path)).done == (a,)


class Released(Watch):
    """Lets go of another process's lock once somebody waits for it."""

    def __init__(self, lock: FileLock, before: list):
        self.lock, self.before, self.waits = lock, before, 0

    def wait(self, jobs) -> None:
        self.waits += 1
        for act in self.before:
            act()
        self.lock.release()


def other_process(workshop, job) -> FileLock:
    lock = FileLock(workshop.ledger.folder / "locks" / f"{job.id}.lock", thread_local=False)
    thread = threading.Thread(target=lock.acquire)  # flock counts by open file, not by thread
    thread.start()
    thread.join()
    return lock


def test_a_job_of_another_process_is_waited_for_after_all_else(tmp_path):
    a, b = chain("a"), chain("b")
    workshop, elsewhere = FakeWorkshop(tmp_path), FakeWorkshop(tmp_path)
    lock = other_process(workshop, a[0])
    watch = Released(lock, [lambda: records.write(tmp_path, elsewhere.perform(a[0], None))])
    summary = execute(plan_of(*a, *b), workshop, watch)
    assert watch.waits == 1
    assert workshop.performed == [j.content["method"] for j in [*b, *a[1:]]]
    assert len(summary.done) == 8


def test_a_job_whose_process_died_is_taken_over(tmp_path):
    (a,) = jobs = [job("pretrain", "a")]
    workshop = FakeWorkshop(tmp_path)
    watch = Released(other_process(workshop, a), [])
    assert execute(plan_of(*jobs), workshop, watch).done == (a,)
    assert workshop.performed == ["a"]


def test_a_failure_in_another_process_is_final_for_this_run_too(tmp_path):
    a, *_ = jobs = chain("a")
    elsewhere = FakeWorkshop(tmp_path, {"a tokenizer": fail(ValueError("bad luck"))})
    workshop = FakeWorkshop(tmp_path)
    lock = other_process(workshop, a)

    def fails_there():
        lock.release()
        execute(plan_of(a), elsewhere)

    summary = execute(plan_of(*jobs), workshop, Released(lock, [fails_there]))
    assert workshop.performed == []
    assert [j for j, _ in summary.failed] == [a]
    assert summary.not_run == tuple(jobs[1:])


def test_an_evaluation_of_weights_that_were_made_anew_is_not_done(tmp_path):
    a = chain("a")
    plan = plan_of(*a)
    execute(plan, FakeWorkshop(tmp_path))
    ledger = Ledger(tmp_path)
    pretrain = ledger.record(a[1].id)
    product = dict.fromkeys(pretrain.product, "another sha")
    records.write(tmp_path, pretrain.model_copy(update={"product": product}))
    assert ledger.done(plan) == {a[0].id, a[1].id}
    again = FakeWorkshop(tmp_path)
    execute(plan, again)
    assert again.performed == ["a knn", "a probe"]


def test_deleted_weights_are_missed_only_when_they_are_needed(tmp_path):
    a = chain("a")
    execute(plan_of(*a), FakeWorkshop(tmp_path))
    ledger = Ledger(tmp_path)
    for one in a[:2]:
        (ledger.weights(one.id) / ("tokenizer" if one is a[0] else "encoder")).with_suffix(
            ".safetensors"
        ).unlink()
    assert ledger.done(plan_of(*a)) == {j.id for j in a}
    more = job("evaluate", "a third", a[1])
    assert ledger.done(plan_of(*a, more)) == {a[2].id, a[3].id}
    again = FakeWorkshop(tmp_path)
    assert len(execute(plan_of(*a, more), again).done) == 5
    assert again.performed == ["a tokenizer", "a", "a third"]


def test_a_deleted_record_is_missed(tmp_path):
    a = chain("a")
    execute(plan_of(*a), FakeWorkshop(tmp_path))
    records.path_of(tmp_path, a[1].id).unlink()
    again = FakeWorkshop(tmp_path)
    execute(plan_of(*a), again)
    assert again.performed == ["a"]


def test_a_damaged_record_stops_before_it_is_overwritten(tmp_path):
    a = job("pretrain", "a")
    workshop = FakeWorkshop(tmp_path)
    records.path_of(tmp_path, a.id).write_text("{")
    with pytest.raises(UserError, match="damaged"):
        execute(plan_of(a), workshop)
    assert workshop.performed == []
