"""Records are the truth: nothing may lose or misread one."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimbench import records
from mimbench.errors import UserError
from mimbench.outcomes import Hits
from mimbench.spec import FORMAT, Job, Recipe, Record

JOB = "0123456789abcdef"


def record(job_id: str = JOB, **changes) -> Record:
    fields = {
        "id": job_id,
        "kind": "evaluate",
        "name": "mae · knn · seed 0",
        "status": "done",
        "content": {"method": "mae"},
        "started": "2026-01-01T00:00:00+00:00",
        "finished": "2026-01-01T00:01:00+00:00",
    }
    return Record(**{**fields, **changes})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "records").mkdir()
    return tmp_path


@given(st.lists(st.booleans(), max_size=40))
def test_every_hit_survives_packing(hits):
    packed = json.loads(json.dumps(Hits(np.array(hits, bool)).pack()))
    assert Hits.unpacked(packed).hits.tolist() == hits


@pytest.mark.parametrize(
    "packed", [{}, {"n": 9, "bits": "AA=="}, {"n": 1, "bits": "A"}, {"n": 8, "bits": "AAA="}, {"n": None}]
)
def test_damaged_hits_are_refused(packed):
    with pytest.raises(ValueError, match="damaged"):
        Hits.unpacked(packed)


def test_probabilities_are_not_taken_for_hits():
    with pytest.raises(ValueError, match="bool"):
        Hits(np.array([0.3, 0.9])).pack()


def test_a_record_comes_back_as_written(folder):
    written = record(metrics={"top1": 0.875}, outcomes=Hits(np.array([True, False])).pack())
    path = records.write(folder, written)
    assert path == records.path_of(folder, JOB)
    assert records.find(folder, JOB) == written
    assert records.read_folder(folder) == [written] == records.read_folder(folder / "records")


def test_nan_is_refused_and_the_old_record_stays(folder):
    records.write(folder, record(metrics={"top1": 0.5}))
    with pytest.raises(ValueError, match="not finite"):
        records.write(folder, record(metrics={"top1": float("nan")}))
    assert records.find(folder, JOB).metrics == {"top1": 0.5}
    assert [p.name for p in (folder / "records").iterdir()] == [f"{JOB}.json"]


def test_foreign_files_are_left_alone(folder):
    records.write(folder, record())
    for name in ("notes.json", "README", f".{JOB}.json.12-ab.tmp", "0123.json", f"{JOB}.json.bak"):
        (folder / "records" / name).write_text("not a record")
    (folder / "records" / "deeper").mkdir()
    assert [r.id for r in records.read_folder(folder)] == [JOB]
    assert (folder / "records" / "notes.json").read_text() == "not a record"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"format": 1, "id"', "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"[]", "damaged"),
        (b"{}", "damaged"),
    ],
)
def test_a_damaged_record_is_named(folder, content, says):
    path = records.path_of(folder, JOB)
    path.write_bytes(content)
    with pytest.raises(UserError, match=says) as caught:
        records.read_folder(folder)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == content


def test_a_record_of_a_newer_version_is_not_misread(folder):
    path = records.path_of(folder, JOB)
    path.write_text(json.dumps({**record().model_dump(), "format": FORMAT + 1, "colour": "blue"}))
    with pytest.raises(
        UserError, match=f"format {FORMAT + 1}, this one reads up to {FORMAT}.*update"
    ) as caught:
        records.find(folder, JOB)
    assert str(path) in str(caught.value)


def test_a_missing_folder_is_said(tmp_path):
    with pytest.raises(UserError, match="no results folder"):
        records.read_folder(tmp_path / "nowhere")


def test_a_full_disk_leaves_the_old_record(folder):
    old = record(metrics={"top1": 0.5})
    records.write(folder, old)
    big = record(content={"method": "mae", "ballast": "x" * 100_000})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(UserError, match="the disk is full"):
            records.write(folder, big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert records.find(folder, JOB) == old
    assert os.listdir(folder / "records") == [f"{JOB}.json"]


def test_reading_records_needs_no_torch():
    code = "import sys; import mimbench.records, mimbench.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_ids_of_what_was_measured_before_are_still_the_ids():
    """A new field that shows in a recipe at its default would have every job done again."""
    checked = 0
    for path in (Path(__file__).parents[2] / "results").glob("*/records/*.json"):
        record = Record.model_validate_json(path.read_text())
        recipe = record.content.get("recipe")
        if recipe is not None and "solarize" in recipe["augmentation"]:  # the first board is older
            content = {**record.content, "recipe": Recipe.model_validate(recipe).content()}
            job = Job(kind=record.kind, name=record.name, content=content, needs=tuple(record.needs))
            assert job.id == record.id == path.stem
            checked += 1
    assert checked
