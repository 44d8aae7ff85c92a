"""Whoever doubts a number runs it again: a touched record must not pass, an honest one must not fail."""

from __future__ import annotations

import copy
import json
import shutil
import sys

import numpy as np
import pytest

from mimbench import cli, records, registry
from mimbench.errors import UserError
from mimbench.executors import Watch
from mimbench.outcomes import Hits, unpack
from mimbench.plan import make_plan
from mimbench.repro.again import plan_again
from mimbench.repro.differences import SURROUNDINGS
from mimbench.repro.verdict import WHOLE, judge
from mimbench.repro.verify import verify
from mimbench.request import make_request
from mimbench.spec import Record
from mimbench.train import METHOD_FILE


class Heard(Watch):
    def __init__(self):
        self.kinds = []

    def start(self, job, number, total):
        self.kinds.append(job.kind)


def record_of(job) -> Record:
    """One that tells no more than the job."""
    told = {"id": job.id, "kind": job.kind, "name": job.name, "content": job.content}
    return Record(**told, status="failed", started="", finished="")


def path(folder, record):
    return str(records.path_of(folder, record.id))


def test_a_published_record_comes_out_again_from_the_records_alone(published, find):
    heard = Heard()
    found = verify(path(published, find("beit")), watch=heard)
    assert found.answer == "same"
    assert heard.kinds == ["tokenizer", "pretrain", "evaluate"]
    assert any("weights it is made from are equal bit for bit" in said for said in found.sentences)
    assert found.now == found.then == find("beit").metrics
    assert [d for d in found.differences if d.kind not in SURROUNDINGS] == []
    assert not (published / "weights").exists()


def test_weights_come_out_again_by_their_hash_and_are_kept_where_it_is_said(published, find, tmp_path):
    record = find("mae", "pretrain")
    found = verify(record.id, results=published, out=tmp_path / "again")
    assert (found.answer, found.folder) == ("same", str(tmp_path / "again"))
    again = records.read(records.path_of(tmp_path / "again", record.id))
    assert again.product == record.product
    assert again.finished > record.finished


def test_what_was_repeated_before_is_not_passed_off_as_repeated_now(published, find, tmp_path):
    record = find("mae", "pretrain")
    for heard in (Heard(), Heard()):
        found = verify(path(published, record), out=tmp_path / "again", watch=heard)
    assert heard.kinds == []
    assert "it was repeated before" in found.sentences[-1]
    with pytest.raises(UserError, match="holds the record itself"):
        verify(path(published, record), out=published)


def test_with_weights_at_hand_only_the_evaluation_is_repeated(board, published, find):
    heard = Heard()
    found = verify(path(published, find("beit")), weights=board, watch=heard)
    assert (found.answer, heard.kinds) == ("same", ["evaluate"])


def test_weights_that_were_replaced_are_not_evaluated(board, published, find, tmp_path):
    mae, beit = (find(method, "pretrain").id for method in ("mae", "beit"))
    shutil.copytree(board / "weights", tmp_path / "weights")
    file = tmp_path / "weights" / mae / "encoder.safetensors"
    shutil.copyfile(tmp_path / "weights" / beit / "encoder.safetensors", file)
    with pytest.raises(
        UserError, match=r"is not what mae · knn · seed 0 was made from: its sha256 is .*replaced"
    ):
        verify(path(published, find("mae")), weights=tmp_path)
    with pytest.raises(UserError, match="no weights of job"):
        verify(path(published, find("mae")), weights=published)
    with pytest.raises(UserError, match="no finished evaluation"):
        verify(path(published, find("mae", "pretrain")), weights=tmp_path)


def test_a_metric_edited_by_hand_is_seen_without_a_repetition(published, find, change):
    record = find("mae")
    heard = Heard()
    found = verify(str(change(record, metrics={**record.metrics, "top1": 0.99})), watch=heard)
    assert (found.answer, found.repeated, heard.kinds) == ("different", False, [])
    assert "it says top1 0.990000, and its per-image outcomes" in found.sentences[0]


def with_flips(record: Record, share: float) -> dict:
    """The record's results with some images that came out wrong made right."""
    hits = Hits.unpacked(record.outcomes).hits.copy()
    wrong = np.flatnonzero(~hits)
    hits[wrong[: max(1, round(share * len(hits)))]] = True
    return {"outcomes": Hits(hits).pack(), "metrics": {**record.metrics, "top1": float(hits.mean())}}


@pytest.mark.parametrize(("share", "answer"), [(0.0, "within interval"), (0.3, "different")])
def test_results_edited_consistently_are_seen_by_repeating_them(board, find, change, share, answer):
    record = find("mae")
    found = verify(str(change(record, **with_flips(record, share))), weights=board)
    assert found.answer == answer
    assert found.now == record.metrics
    assert found.gap.told_apart == (answer == "different")
    where = "inside" if answer == "within interval" else "outside of"
    assert f"{where} the record's 95% interval" in found.sentences[0]


def test_the_same_number_out_of_other_images_is_not_the_same(find):
    record = find("mae")
    hits = unpack(record.outcomes).hits
    assert 0 < hits.sum() < len(hits)
    other = record.model_copy(update={"outcomes": Hits(np.roll(hits, 1)).pack()})
    assert judge(record, record)[0] == "same"
    assert judge(record, other)[0] == "within interval"


def test_a_setting_changed_by_hand_is_seen_by_the_id(find, change):
    record = find("mae", "pretrain")
    content = copy.deepcopy(record.content)
    content["settings"]["mask_ratio"] = 0.9
    found = verify(str(change(record, content=content)))
    assert (found.answer, found.repeated) == ("different", False)
    assert "its content is not the one its id was made of" in found.sentences[0]


def test_a_record_made_from_other_weights_than_those_beside_it_is_seen(find, change):
    record = find("mae", "pretrain")
    change(record, product=dict.fromkeys(record.product, "f" * 64))
    evaluated = find("mae")
    assert "beside it wrote ffffffff…" in verify(str(change(evaluated))).sentences[0]


def test_another_version_of_a_protocol_is_told_before_hours_are_spent(board, published, find, change):
    record = find("mae")
    content = {**record.content, "protocol_version": 0}
    content["fields"] = {k: v for k, v in content["fields"].items() if k != "temperature"}
    file = str(change(record, renamed=True, content=content))
    heard = Heard()
    with pytest.raises(UserError) as refused:
        verify(file, watch=heard)
    assert "protocol_version was 0, and is 1 today; fields.temperature is" in str(refused.value)
    assert heard.kinds == []
    found = verify(file, weights=board, anyway=True)
    assert found.answer == "same"
    assert found.first_difference == "protocol_version: 0 → 1"


def test_another_version_of_a_method_is_told_and_its_commit_named(find, change):
    record = find("mae", "pretrain")
    environment = {**record.environment, "source": {"commit": "c0ffee" * 6 + "beef", "changed": False}}
    content = {**record.content, "method_version": 7}
    file = change(record, renamed=True, content=content, environment=environment)
    with pytest.raises(
        UserError, match=r"method_version was 7, and is 1 today; check out commit c0ffeec0ffee"
    ):
        verify(str(file))


def test_the_first_version_that_differs_is_named(board, find, change):
    record = find("mae")
    environment = copy.deepcopy(record.environment)
    environment["versions"]["torch"] = "1.0"
    environment["cpu"] = "a slower one"
    found = verify(str(change(record, environment=environment)), weights=board)
    assert found.answer == "same"
    assert found.first_difference.startswith("torch: 1.0 → ")
    assert [d.name for d in found.differences] == ["torch", "cpu"]


def test_other_images_under_the_same_name_are_not_taken(find, change):
    record = find("mae", "pretrain")
    content = copy.deepcopy(record.content)
    content["setting"]["fingerprint"] = "ab" * 32
    data = {**record.data, "fingerprints": {**record.data["fingerprints"], "train": "cd" * 32}}
    file = change(record, renamed=True, content=content, data=data)
    with pytest.raises(UserError, match=r"digits holds other images: .*in the record abababab….*train 1259"):
        verify(str(file))
    with pytest.raises(UserError, match="no dataset is called 'digitz'"):
        verify(str(file), data=["digitz"])


def test_a_failure_that_comes_again_is_the_same(published, find, monkeypatch):
    from mimbench.protocol import EvaluationFailed

    record = find("mae")
    failed = record.model_copy(
        update={"status": "failed", "error": "too cold", "needs": {}, "metrics": {}, "outcomes": {}}
        | {"environment": {}, "data": {}, "cost": {}, "facts": {}, "selection": {}}
    )
    file = str(records.write(published, failed))
    assert verify(file).sentences[:2] == ("it failed with: too cold", "and does not fail now")

    def cold(*_):
        raise EvaluationFailed("too cold")

    monkeypatch.setattr(registry.find_protocol("knn"), "evaluate", cold)
    found = verify(file)
    assert found.answer == "same"
    assert found.sentences[0] == "it fails in the same way: too cold"
    records.write(published, record)
    assert verify(file).sentences[0] == "it was done, and fails now with: too cold"


ASKED = [
    {"methods": "beit[tokenizer=method:vqkd,vqkd.vocabulary=64]", "protocol": "linprobe:mae,knn"},
    {"methods": "mae[mask_ratio=0.9,masking=block]", "set": {"linprobe.lr": [0.1, 1.0]}, "flops": 1e12},
    {"methods": "mae", "recipe": "paper", "seeds": "3,4", "protocol": "linprobe:mae",
     "set": {"linprobe:mae.lr": [0.3]}},
    {"methods": "ibot", "protocol": "none", "epochs": 7, "baselines": True},
]  # fmt: skip


@pytest.mark.parametrize("asked", ASKED)
def test_every_job_of_a_plan_is_planned_again_from_its_record(digits, asked):
    plan = make_plan(make_request({"baselines": False, **asked}), [digits], "fp32")
    assert len(plan) > 1
    for job in plan:
        record = record_of(job)
        again = plan_again(record, [digits], {})
        assert (again.job.id, again.changed) == (job.id, ())
        assert {need.id for need in again.chain} >= {job.id, *job.needs}


def test_the_whole_zoo_is_planned_again_from_its_records(digits):
    rows = [key for key, cls in registry.methods().items() if cls.card.role != "tokenizer"]
    plan = make_plan(make_request({"methods": rows, "protocol": "none"}), [digits], "fp32")
    for job in plan:
        record = record_of(job)
        assert plan_again(record, [digits], {}).job.id == job.id


def test_a_file_that_the_training_was_given_must_be_given_again(digits, tmp_path, board, find):
    file = board / "weights" / find("vqvae", "tokenizer").id / "tokenizer.safetensors"
    asked = {"methods": "beit", "tokenizer": f"file:{file}", "protocol": "none", "baselines": False}
    (job,) = make_plan(make_request(asked), [digits], "fp32")
    record = record_of(job)
    with pytest.raises(UserError, match="--given PATH"):
        plan_again(record, [digits], {})
    sha256 = job.content["provided"]["tokenizer"]["sha256"]
    assert plan_again(record, [digits], {sha256: file}).job.id == job.id


def test_exit_status_and_json_of_the_command(published, find, change, capsys, monkeypatch, board):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["mimbench", "verify", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code or 0, capsys.readouterr()

    record = find("mae")
    status, told = run(record.id, f"--results={published}", f"--weights={board}", "--format=json")
    assert (status, json.loads(told.out)["answer"]) == (0, "same")
    status, told = run(record.id, f"--results={published}", f"--weights={board}")
    assert status == 0
    assert told.out.splitlines()[:2] == [record.name, "same"]
    assert run("nowhere")[0] == 2
    assert "looked in" in run("nowhere")[1].err
    change(record, metrics={**record.metrics, "top1": 0.99})
    assert run(path(published, record))[0] == 1
    assert run(path(published, record), "--format=xml")[0] == 2


def test_the_file_with_every_tensor_is_called_so_in_both_places():
    assert WHOLE == METHOD_FILE
