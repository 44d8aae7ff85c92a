"""Plans: the same work has the same name, other work has another, and mistakes come out before any work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mimbench import registry
from mimbench.errors import UserError
from mimbench.outcomes import Hits
from mimbench.plan import Plan, make_plan
from mimbench.request import make_request
from mimbench.spec import Job
from mimbench.weights.given import Given


@pytest.fixture
def plan(digits):
    def make(methods: str = "mae", data=digits, **options) -> Plan:
        return make_plan(make_request({"methods": methods, **options}), [data], "fp32")

    return make


def ids(plan: Plan) -> set[str]:
    return {job.id for job in plan}


def variants(plan: Plan, kind: str = "pretrain") -> list[str]:
    return [job.content["variant"] for job in plan if job.kind == kind]


def the(plan: Plan, kind: str, variant: str = "mae") -> Job:
    (job,) = (j for j in plan if j.kind == kind and j.content["variant"] == variant)
    return job


def test_the_order_of_a_request_decides_no_result(plan):
    one = plan("mae,beit,hpm", protocol="knn,linprobe", seeds="0,1")
    other = plan("hpm,beit,mae,mae", protocol="linprobe,knn", seeds="1,0,0")
    assert ids(one) == ids(other)
    assert len(one) == len(ids(one))


def test_filing_a_method_anew_in_the_taxonomy_does_not_change_its_jobs(plan, monkeypatch):
    before = ids(plan())
    cls = registry.find_method("mae")
    other = cls.card.classes.model_copy(update={"masking": "network-guided"})
    changed = {"classes": other, "scheme": "both", "masking": "by a network"}
    monkeypatch.setattr(cls, "card", cls.card.model_copy(update=changed))
    assert ids(plan()) == before


def test_where_things_lie_and_how_they_run_decides_no_result(plan, digits):
    same = {"out": "elsewhere", "workers": 3, "micro_batch": 16, "dry_run": True, "skip_broken": True}
    assert ids(plan(**same)) == ids(plan())

    class Moved:
        """The same images in a folder of another name."""

        name = "parquet:elsewhere"

        def __getattr__(self, name):
            return getattr(digits, name)

    assert ids(plan(data=Moved())) == ids(plan())


@pytest.mark.parametrize(
    "change",
    [
        {"methods": "mae[mask_ratio=0.5]"},
        {"set": ["mae.mask_ratio=0.5"]},
        {"image_size": 8},
        {"backbone": "vit_tiny_patch4"},
        {"epochs": 3},
        {"images": 100},
        {"recipe": "paper"},
        {"batch_size": 64},
        {"seeds": "1"},
    ],
)
def test_whatever_decides_a_result_gives_it_another_name(plan, change):
    changed = plan(**{"baselines": False, **change})
    assert not ids(changed) & ids(plan(baselines=False))


def test_precision_and_data_are_part_of_the_name(plan, digits):
    class Other:
        fingerprint = "0" * 64

        def __getattr__(self, name):
            return getattr(digits, name)

    assert not ids(plan()) & ids(plan(data=Other()))
    assert not ids(plan()) & ids(make_plan(make_request({"methods": "mae"}), [digits], "bf16"))


def test_a_protocols_settings_are_part_of_its_jobs_only(plan):
    one, other = plan(protocol="knn"), plan(protocol="knn", set=["knn.temperature=0.1"])
    assert the(one, "pretrain").id == the(other, "pretrain").id
    assert the(one, "evaluate").id != the(other, "evaluate").id


def test_a_raised_version_makes_old_results_other_results(plan, monkeypatch):
    before = plan(protocol="knn")
    monkeypatch.setattr(registry.find_protocol("knn"), "version", 99)
    after = plan(protocol="knn")
    assert the(before, "pretrain").id == the(after, "pretrain").id
    assert the(before, "evaluate").id != the(after, "evaluate").id
    mae = registry.find_method("mae")
    monkeypatch.setattr(mae, "card", mae.card.model_copy(update={"version": 99}))
    assert the(after, "pretrain").id != the(plan(), "pretrain").id


def test_jobs_come_after_those_they_need(plan):
    seen = set()
    for job in plan("beit,mae", seeds="0,1", protocol="knn,linprobe"):
        assert set(job.needs) <= seen
        seen.add(job.id)


def test_methods_share_a_tokenizer(plan):
    both = plan("beit,beit[mask_ratio=0.5]", baselines=False)
    (tokenizer,) = (j for j in both if j.kind == "tokenizer")
    assert [j.needs for j in both if j.kind == "pretrain"] == [(tokenizer.id,)] * 2


def test_a_changed_tokenizer_is_another_row(plan):
    changed = plan("beit,beit[vqvae.vocabulary=64]", baselines=False)
    assert variants(changed) == ["beit", "beit[vqvae.vocabulary=64]"]
    assert variants(changed, "tokenizer") == ["vqvae", "vqvae[vocabulary=64]"]
    assert ids(plan("beit", baselines=False, set=["vqvae.vocabulary=64"])) < ids(changed)


def test_a_given_tokenizer_counts_by_its_content(plan, tmp_path):
    for name, content in (("a.pt", b"weights"), ("b.pt", b"weights"), ("c.pt", b"others")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (plan("beit", tokenizer=f"file:{tmp_path / name}.pt", baselines=False) for name in "abc")
    assert ids(a) == ids(b)
    assert not ids(a) & ids(c)
    assert variants(a, "tokenizer") == []
    assert variants(a)[0].startswith("beit[tokenizer=sha256:")
    assert list(a.files.values()) == [Path(tmp_path / "a.pt")]


def test_a_tokenizer_named_by_its_address_is_the_file_behind_it(plan, tmp_path, monkeypatch):
    (tmp_path / "dvae.pt").write_bytes(b"weights")
    address = "https://example.org/dvae.pt"
    known = {address: tmp_path / "dvae.pt"}
    monkeypatch.setattr("mimbench.builder.fetch", lambda source, report: known[source])
    from_web, from_disk = (
        plan("beit", tokenizer=source, baselines=False) for source in (address, f"file:{tmp_path}/dvae.pt")
    )
    assert ids(from_web) == ids(from_disk)


def test_a_teacher_is_trained_first_and_shared_with_its_own_row(plan):
    made = plan("tinymim,mae", baselines=False)
    teacher, student = the(made, "pretrain", "mae"), the(made, "pretrain", "tinymim")
    assert student.needs == (teacher.id,)
    assert [job.kind for job in made].count("pretrain") == 2
    assert student.content["external"] == "teacher"
    assert student.content["sources"] == "teacher mae"
    assert "with teacher mae" in student.name
    assert the(made, "evaluate", "tinymim").content["provided"] == student.content["provided"]


def test_a_tokenizer_may_have_a_teacher_of_its_own(plan):
    made = plan("beitv2[vqkd.teacher=method:mae,mae.norm_pix=false]", baselines=False)
    (label,) = variants(made)[-1:]
    tokenizer = the(made, "tokenizer", "vqkd[mae.norm_pix=false,teacher=method:mae]")
    teacher = the(made, "pretrain", "mae[norm_pix=false]")
    assert the(made, "pretrain", label).needs == (tokenizer.id,)
    assert tokenizer.needs == (teacher.id,)
    assert the(made, "pretrain", label).content["external"] == "teacher"
    assert variants(plan(label, baselines=False))[-1] == label  # a label is what one may type


def test_a_teacher_given_for_all_is_not_the_teachers_own(plan):
    made = plan("deepmim,tinymim,beitv2", teacher="method:deepmim", baselines=False)
    teacher = the(made, "pretrain", "deepmim")  # the row that the others learn from: without a teacher
    assert not teacher.needs
    students = ("deepmim[teacher=method:deepmim]", "tinymim[teacher=method:deepmim]")
    assert all(the(made, "pretrain", name).needs == (teacher.id,) for name in students)
    assert the(made, "tokenizer", "vqkd[teacher=method:deepmim]").needs == (teacher.id,)


def test_methods_that_need_each_other_are_named(plan, monkeypatch):
    monkeypatch.setattr(registry.find_method("mae"), "needs", {"teacher": "tinymim"})
    with pytest.raises(UserError, match=r"would have to be trained before itself \(tinymim <- mae <- "):
        plan("tinymim")


def test_learning_from_a_teacher_that_saw_labels_is_learning_from_labels(plan):
    made = plan("tinymim", teacher="method:supervised", baselines=False)
    assert the(made, "pretrain", "tinymim[teacher=method:supervised]").content["external"] == "labels"


def test_a_released_teacher_is_a_file_with_a_name(plan, tmp_path, monkeypatch):
    path = tmp_path / "vit.safetensors"
    path.write_bytes(b"weights")
    known = {"timm:vit": "labels", "mae@vit_base": "none"}
    given = {name: Given(path, name, {"release": {"external": told}}) for name, told in known.items()}
    monkeypatch.setattr("mimbench.builder.resolve", lambda source, report: given[source])
    for name, told in {"timm:vit": "labels", "mae@vit_base": "teacher"}.items():
        made = plan("tinymim", teacher=name, baselines=False)
        assert variants(made) == [f"tinymim[teacher={name}]"]
        assert list(made.files.values()) == [path]
        assert not made.jobs[0].needs
        assert the(made, "pretrain", f"tinymim[teacher={name}]").content["external"] == told


def test_floor_and_ceiling_stand_beside_the_methods(plan):
    assert variants(plan("mae")) == ["random", "pixels", "mae", "supervised"]
    assert variants(plan("mae", baselines=False)) == ["mae"]
    several = variants(plan("random[like=beit],beit"))
    assert sorted(several) == ["beit", "pixels", "random", "random[like=beit]", "supervised"]
    assert variants(plan("mae,random")) == ["pixels", "mae", "random", "supervised"]


def test_variants_are_rows_and_equal_ones_are_one(plan):
    made = plan("mae,mae[mask_ratio=0.75],mae[mask_ratio=0.5],mae[mask_ratio=0.50]", baselines=False)
    assert variants(made) == ["mae", "mae[mask_ratio=0.5]"]


def test_set_reaches_all_variants_that_do_not_say_otherwise(plan):
    made = plan("mae[mask_ratio=0.5],mae[decoder_depth=2],beit", baselines=False, set=["mae.mask_ratio=0.9"])
    assert variants(made) == ["mae[mask_ratio=0.5]", "mae[decoder_depth=2,mask_ratio=0.9]", "beit"]


def test_set_reaches_baselines_and_protocols(plan):
    made = plan("mae", set=["supervised.label_smoothing=0", "linprobe.epochs=3"])
    assert "supervised[label_smoothing=0]" in variants(made)
    assert the(made, "evaluate").content["fields"]["epochs"] == 3


def test_digits_are_not_mirrored(plan):
    augmentation = the(plan(), "pretrain").content["recipe"]["augmentation"]
    assert augmentation["flip"] is False
    assert augmentation["crop_scale"] == [0.7, 1.0]


def test_a_tokenizer_keeps_its_own_recipe(plan):
    made = plan("beit", baselines=False)
    own = registry.find_method("vqvae").card.recipe
    assert the(made, "tokenizer", "vqvae").content["recipe"]["base_lr"] == own.base_lr
    assert the(made, "pretrain", "beit").content["recipe"]["base_lr"] != own.base_lr


def test_without_labels_there_is_no_ceiling_and_no_probe(plan, without_labels):
    with pytest.raises(UserError, match="knn needs labels, flat has none"):
        plan("mae", data=without_labels, protocol="knn")
    with pytest.raises(UserError, match="supervised needs labels"):
        plan("mae,supervised", data=without_labels)
    only = plan("mae", data=without_labels, protocol="none")
    assert variants(only) == ["random", "pixels", "mae"]
    assert {job.kind for job in only} == {"pretrain"}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"methods": "maee"}, "no method is called 'maee'; did you mean mae"),
        ({"methods": "vqvae"}, "vqvae is a tokenizer"),
        ({"protocol": "lineprobe"}, "no protocol is called 'lineprobe'; did you mean linprobe"),
        ({"methods": "mae[mask_ratio=1.5]"}, "mae.mask_ratio=1.5: must be less than 1 (default 0.75)"),
        ({"set": ["mae.mask_ratio=1.5"]}, "mae.mask_ratio=1.5: must be less than 1"),
        (
            {"methods": "mae[mask_rato=0.5]"},
            "no setting of mae is called 'mask_rato'; did you mean mask_ratio",
        ),
        (
            {"set": ["mea.mask_ratio=0.5"]},
            "no method or protocol of this run is called 'mea'; did you mean mae",
        ),
        ({"set": ["beit.mask_ratio=0.5"]}, "no method or protocol of this run is called 'beit'"),
        ({"set": ["linprobe.epoch=5"]}, "no setting of linprobe is called 'epoch'; did you mean epochs"),
        (
            {"methods": "mae[vqvae.vocabulary=5]"},
            "mae takes no setting 'vqvae.vocabulary': it is trained from nothing else",
        ),
        ({"methods": "mae[tokenizer=file:x]"}, "mae has no tokenizer; leave it out"),
        (
            {"methods": "beit[vqvea.vocabulary=5]"},
            "beit takes no setting 'vqvea.vocabulary': it is trained from vqvae",
        ),
        ({"methods": "beit[vqvae.vocabulry=5]"}, "no setting of vqvae is called 'vocabulry'"),
        ({"tokenizer": "file:x.pt"}, "no method of this run has a tokenizer"),
        ({"teacher": "method:mae"}, "no method of this run has a teacher"),
        ({"methods": "tinymim", "teacher": "method:vqvae"}, "no teacher is called 'vqvae'"),
        ({"methods": "tinymim", "teacher": "file:nowhere"}, "cannot read the teacher nowhere: No such file"),
        (
            {"methods": "tinymim", "teacher": "clip"},
            "released weights such as mae@vit_base or timm:NAME, method:NAME",
        ),
        ({"methods": "tinymim[ibot.out_dim=5]"}, "'ibot.out_dim': it is trained from mae;"),
        (
            {"methods": "beit", "tokenizer": "file:nowhere.pt"},
            "cannot read the tokenizer nowhere.pt: No such file",
        ),
        ({"methods": "beit", "tokenizer": "method:mae"}, "no tokenizer is called 'mae'; did you mean vqvae"),
        (
            {"methods": "beit", "tokenizer": "method:vqva"},
            "no tokenizer is called 'vqva'; did you mean vqvae",
        ),
        (
            {"methods": "beit", "tokenizer": "dvae.pt"},
            "write file:PATH or https://…, method:NAME",
        ),
        ({"protocol": "knn", "set": ["knn.k=5000"]}, "knn.k=5000 asks for more neighbours than"),
    ],
)
def test_a_mistake_is_one_clear_sentence_before_any_work(plan, given, says):
    with pytest.raises(UserError) as caught:
        plan(**given)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_results_of_a_renamed_folder_stay_in_their_table(tmp_path):
    from mimbench import records
    from mimbench.board import load, tables
    from mimbench.spec import Record

    from .pieces import SETTING

    (tmp_path / "records").mkdir()
    for i, (method, name) in enumerate([("mae", "parquet:before"), ("beit", "parquet:after")]):
        content = {
            "method": method, "variant": method, "settings": {}, "method_version": 1, "role": "method",
            "external": "none", "protocol": "knn", "protocol_version": 1, "fields": {}, "seed": 0,
            "setting": {**SETTING.content(), "data": name},
        }  # fmt: skip
        hits = Hits(np.array([True, False])).pack()
        times = {"started": "2026-01-01T00:00:00+00:00", "finished": "2026-01-01T00:00:00+00:00"}
        record = Record(
            id=f"{i:016x}", kind="evaluate", name=method, status="done", content=content,
            metrics={"top1": 0.5}, outcomes=hits, **times,
        )  # fmt: skip
        records.write(tmp_path, record)
    (table,) = tables(load(tmp_path))
    assert {row.variant for row in table.rows} == {"mae", "beit"}
