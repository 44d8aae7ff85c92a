"""Records of released weights: evaluated again, reported and compared by whoever has the file."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch

import mimbench
from mimbench import records
from mimbench.errors import UserError
from mimbench.repro.compare import compare
from mimbench.repro.report import make_report, write_report
from mimbench.repro.verdict import judge
from mimbench.repro.verify import verify
from mimbench.spec import Record
from tests.weights.released import converted

RUN = {"protocol": "knn", "image_size": 16, "precision": "fp32"}


@pytest.fixture(scope="module")
def released(tmp_path_factory, cache) -> tuple[Path, Path]:
    """A converted file, and the results of its row and floors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIMBENCH_CACHE", str(cache))
        folder = tmp_path_factory.mktemp("released")
        path = converted(folder / "file")
        methods = f"mae@vit_base=file:{path},mine=file:{path}"
        assert mimbench.run(methods, out=folder / "results", **RUN).ok
        return path, folder / "results"


def of(folder: Path, variant: str, kind: str = "evaluate") -> Record:
    found = records.read_folder(folder)
    return next(r for r in found if r.kind == kind and r.content["variant"] == variant)


def again(folder: Path, record: Record, **options):
    return verify(str(folder / "records" / f"{record.id}.json"), **options)


@pytest.mark.parametrize("variant", ["pixels", "random[like=mae@vit_base]", "mae@vit_base", "mine"])
def test_every_row_is_evaluated_again_from_its_record_and_the_file(released, variant):
    path, folder = released
    for kind in ("evaluate", "pretrain"):
        found = again(folder, of(folder, variant, kind), given=[path])
        assert found.answer == "same", found.sentences
        assert not found.differences


def test_a_file_is_recognised_by_its_content_wherever_it_lies(released, tmp_path):
    path, folder = released
    moved = shutil.copy(path, tmp_path / "elsewhere.safetensors")
    assert again(folder, of(folder, "mine"), given=[Path(moved)]).answer == "same"
    with pytest.raises(UserError, match="--given PATH"):
        again(folder, of(folder, "mine"), given=[])


def test_a_corrected_fact_of_the_catalogue_makes_no_other_weights(released):
    """What the header tells beside the tensors is no part of what is compared."""
    _, folder = released
    record = of(folder, "mae@vit_base", "pretrain")
    name = "encoder.safetensors"
    old = record.model_copy(update={"product": {name: "00" * 32}})
    answer, sentences, _ = judge(old, record)
    assert answer == "same"
    assert "header" in sentences[0]
    facts = {**record.facts, "tensors_sha256": "11" * 32}
    assert judge(old.model_copy(update={"facts": facts}), record)[0] == "different"


def test_the_report_names_each_file_with_its_licence_and_hash(released):
    _, folder = released
    report = make_report(folder)
    told = {one.variant: one for one in report.released}
    assert told.keys() == {"mae@vit_base", "mine"}
    facts = of(folder, "mine", "pretrain").facts["release"]
    assert told["mine"].sha256 == facts["file_sha256"]
    assert told["mine"].licence == "CC-BY-NC-4.0"
    assert told["mine"].trained_on == "ImageNet-1K, 1600 epochs"
    assert not [remark for remark in report.remarks if "not installed" in remark or "version" in remark]
    paths = write_report(folder)
    for path in paths:
        assert facts["file_sha256"] in path.read_text(encoding="utf-8"), path


def test_what_no_journal_notes_is_put_together_with_the_names_of_entries(released, tmp_path):
    _, folder = released
    shutil.copytree(folder / "records", tmp_path / "records")
    asked = [one for one in make_report(tmp_path).asked if not one.noted]
    methods = [name for one in asked for name in one.options["methods"]]
    assert "mae@vit_base" in methods
    assert "pixels[like=vit_base_patch16]" in methods
    assert "random[like=mae@vit_base]" in methods
    for one in asked:
        assert not re.search(r"--(backbone|batch-size|recipe|epochs)", one.command)


def test_two_files_under_one_name_are_told_apart(released, tmp_path):
    _, folder = released
    other = converted(tmp_path / "other", cls_token=torch.ones(1, 1, 48))
    assert mimbench.run(f"mine=file:{other}", baselines=False, out=tmp_path / "results", **RUN).ok
    mine, theirs = of(folder, "mine"), of(tmp_path / "results", "mine")
    found = compare(
        str(folder / "records" / f"{mine.id}.json"),
        str(tmp_path / "results" / "records" / f"{theirs.id}.json"),
    )
    assert any(difference.name == "released.file_sha256" for difference in found.differences)
