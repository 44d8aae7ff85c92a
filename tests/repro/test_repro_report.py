"""What a report says must be what the records say, and what they do not say it must not make up."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from itertools import pairwise

import pytest
import yaml
from markdown_it import MarkdownIt

from mimbench import cli, journal, records
from mimbench.errors import UserError
from mimbench.plan import make_plan
from mimbench.repro.dossier import Report
from mimbench.repro.drawn import html, markdown
from mimbench.repro.report import make_report, write_report
from mimbench.request import make_request

from ..board.browsing import HOSTILE, Watched
from ..board.synthetic import Board
from ..board.test_page_access import complaints

HERE = {
    "python": "3.11",
    "versions": {"torch": "2.13.0"},
    "cpu": "a CPU",
    "source": {"commit": "a" * 40, "changed": False},
}


@pytest.fixture
def made(board) -> Report:
    return make_report(board)


def item(report: Report, words: str):
    (found,) = (item for item in report.checklist if words in item.question)
    return found


def test_the_request_in_a_report_asks_for_the_same_jobs(made, digits):
    (asked,) = made.asked
    assert asked.noted
    for options in (yaml.safe_load(asked.yaml), read_command(asked.command)):
        plan = make_plan(make_request(options), [digits], "fp32")
        assert {job.id for job in plan} == {job.record for job in made.jobs}
    assert made.again == (asked.command,)


def read_command(line: str) -> dict:
    """The options of a ``mimbench run`` line, as the command line reads them."""
    from typer.main import get_command

    program, command, *arguments = shlex.split(line)
    assert (program, command) == ("mimbench", "run")
    run = get_command(cli.app).commands["run"]
    context = run.make_context("run", arguments)
    return {
        name: value
        for name, value in context.params.items()
        if name != "file" and context.get_parameter_source(name).name == "COMMANDLINE"
    }


@pytest.mark.parametrize(
    "asked",
    [
        {"methods": "mae[mask_ratio=0.5],random", "protocol": "linprobe:mae,knn", "seeds": "0,1"},
        {"methods": "beit", "protocol": "knn", "set": {"knn.k": [5], "mae.mask_ratio": 0.6}, "flops": 2e12},
        {"methods": "simmim", "protocol": "none", "recipe": "paper", "batch_size": 32},
    ],
)
def test_without_a_journal_the_request_is_put_together_from_the_records(tmp_path, digits, asked):
    given = {"baselines": False, **asked}
    given["methods"] += ",mae" if "mae.mask_ratio" in given.get("set", {}) else ""
    board = Board(tmp_path)
    plan = make_plan(make_request(given), [digits], "fp32")
    for job in plan:
        done = {"status": "done", "needs": dict.fromkeys(job.needs, "ab" * 32)}
        told = {
            "id": job.id,
            "kind": job.kind,
            "name": job.name,
            "content": job.content,
            "started": "",
            "finished": "",
        }
        records.write(board.folder, records.Record(**told, **done))
    report = make_report(board.folder)
    (again,) = report.asked
    assert not again.noted
    plan_again = make_plan(make_request(read_command(again.command)), [digits], "fp32")
    assert {job.id for job in plan_again} == {job.id for job in plan}
    assert {job.id for job in make_plan(make_request(yaml.safe_load(again.yaml)), [digits], "fp32")} == {
        job.id for job in plan
    }


def test_settings_that_differ_are_those_and_no_others(tmp_path):
    board = Board(tmp_path)
    board.pretrain("mae[mask_ratio=0.9]", settings={"mask_ratio": 0.9, "norm_pix": True, "gone": 1})
    board.evaluate("mae[mask_ratio=0.9]", protocol="knn", fields={"k": [5], "temperature": 0.07})
    report = make_report(board.folder)
    told = {(one.owner, one.name): (one.value, one.default) for one in report.changed}
    assert told == {
        ("mae", "mask_ratio"): (0.9, 0.75),
        ("mae", "gone"): (1, "no such setting in this version"),
        ("knn", "k"): ([5], [1, 5, 10, 20, 50, 100, 200]),
        ("run", "recipe"): ("paper", "shared"),
        ("run", "batch_size"): (64, 128),
    }


def test_a_plug_in_that_is_not_here_is_said_to_be_unknown(tmp_path):
    board = Board(tmp_path)
    board.evaluate("theirs", protocol="theirs_too", settings={"depth": 3})
    report = make_report(board.folder)
    said = "\n".join(report.remarks)
    assert "the method theirs is not installed here" in said
    assert "the protocol theirs_too is not installed here" in said
    assert "{depth: 3}" in said
    assert item(report, "algorithm clearly described").answer == "partly"
    assert report.asked == ()


def test_an_older_version_of_a_protocol_is_said(tmp_path):
    board = Board(tmp_path)
    board.evaluate("mae", protocol="knn", protocol_version=0, fields={})
    assert any(
        "knn ran in version 0 and is in version 1 here" in said for said in make_report(board.folder).remarks
    )


def test_weights_are_held_against_their_hash(board, tmp_path):
    folder = tmp_path / "board"
    shutil.copytree(board, folder)
    states = {file.state for file in make_report(folder).weights}
    assert states == {"matches"}
    assert item(make_report(folder), "trained models").answer == "yes"
    one, two, *_ = sorted((folder / "weights").glob("*/encoder.safetensors"))
    one.write_bytes(b"something else")
    two.unlink()
    told = {(file.record, file.file): file.state for file in make_report(folder).weights}
    assert told[one.parent.name, one.name] == "differs"
    assert told[two.parent.name, two.name] == "missing"
    found = item(make_report(folder), "trained models")
    assert found.answer == "partly"
    assert "1 are not what was written" in found.evidence


def test_two_machines_in_one_run_are_named(tmp_path):
    board = Board(tmp_path)
    elsewhere = {**HERE, "cpu": "b CPU", "versions": {"torch": "2.6.0"}}
    for seed, environment in enumerate([HERE, HERE, elsewhere]):
        record = board.evaluate("mae", seed=seed)
        records.write(board.folder, record.model_copy(update={"environment": environment}))
    said = make_report(board.folder).mixed
    assert said == (
        "cpu differs within this run: a CPU (2 records), b CPU (1 records)",
        "torch differs within this run: 2.13.0 (2 records), 2.6.0 (1 records)",
    )


def test_cost_counts_each_training_once_tokenizers_included(made, board):
    trained = [r for r in records.read_folder(board) if r.kind != "evaluate"]
    assert len(trained) == 3
    assert made.cost.training_seconds == pytest.approx(sum(r.cost["wall_seconds"] for r in trained))
    assert made.cost.flops == pytest.approx(sum(r.cost["flops"] for r in trained))
    (tokenizer,) = (r for r in trained if r.kind == "tokenizer")
    assert made.cost.before_seconds == pytest.approx(tokenizer.cost["wall_seconds"])
    assert sum(made.cost.device_hours.values()) * 3600 == pytest.approx(made.cost.training_seconds)
    assert (made.cost.trainings, made.cost.evaluations) == (3, 2)


def test_failures_edits_and_choices_on_test_are_not_hushed_up(tmp_path):
    board = Board(tmp_path)
    board.evaluate("beit", error="the disk is full")
    chosen = {"candidates": [{"lr": 1}, {"lr": 2}], "chosen": 0, "rule": "highest test top1"}
    record = board.evaluate("mae", 0.5, selection=chosen)
    records.write(board.folder, record.model_copy(update={"metrics": {"top1": 0.9}}))
    report = make_report(board.folder)
    assert [(one.name, one.error) for one in report.failures] == [
        ("beit · linprobe · seed 0", "the disk is full")
    ]
    assert "it says top1 0.900000" in report.contradictions[0]
    found = item(report, "hyper-parameters")
    assert (found.answer, "chose on the test images" in found.evidence) == ("partly", True)
    assert "1 failed" in item(report, "number of training").evidence
    page, text = html(report), markdown(report)
    for drawn in (page, text):
        assert "the disk is full" in drawn
        assert "it says top1 0.900000" in drawn


def test_the_checklist_ticks_only_what_records_show(tmp_path):
    board = Board(tmp_path)
    for seed in (0, 1):
        board.evaluate("mae", 0.5, seed)
    report = make_report(board.folder)
    assert len(report.checklist) == 21  # of version 2.0
    answers = {item.question: item.answer for item in report.checklist}
    assert item(report, "central tendency").answer == "yes"
    assert item(report, "assumptions").answer == "not known"
    assert item(report, "downloaded").answer == "not known"
    assert item(report, "claim proved").answer == "not applicable"
    assert item(report, "dependencies").answer == "no"  # these records have no environment
    assert item(report, "infrastructure").answer == "no"
    assert item(report, "training code").answer == "partly"
    board.evaluate("beit", 0.5)
    assert item(make_report(board.folder), "central tendency").answer == "partly"
    assert set(answers.values()) <= {"yes", "partly", "no", "not known", "not applicable"}


def test_a_report_can_be_of_one_row_or_of_one_request(board):
    report = make_report(board, ["beit"])
    assert {job.name.split(" ")[0] for job in report.jobs} == {
        "beit",
        "vqvae",
    }  # with what was trained for it
    (asked,) = journal.read(board)
    assert len(make_report(board, [asked.id]).jobs) == len(asked.jobs)
    with pytest.raises(UserError, match="did you mean beit"):
        make_report(board, ["beitt"])
    with pytest.raises(UserError, match="no results folder"):
        make_report(board / "nowhere")


def test_json_is_the_whole_report(made, board, tmp_path):
    (path,) = write_report(board, formats=["json"], out=tmp_path)
    again = Report.model_validate_json(path.read_text(encoding="utf-8"))
    assert again.model_copy(update={"made_at": made.made_at}) == made
    assert json.loads(path.read_text(encoding="utf-8"))["format"] == 1


WORSE = (
    *HOSTILE,
    "a|b`c*d_e_ [x](https://x.y) <b> # - 1. $x$ &amp; ~~s~~",
    "- [ ] item",
    "1. one",
    "# head",
    "![i](j)",
)


@pytest.fixture
def hostile(tmp_path) -> Report:
    board = Board(tmp_path)
    for name in WORSE:
        board.pretrain(name, settings={name: name})
        board.evaluate(name, error=name, fields={name: name}, preset=name)
        record = board.evaluate(
            name, protocol="knn", facts={"summary": name}, setting={**board.setting, "data": name}
        )
        environment = {"cpu": name, "versions": {"torch": name}, "source": {"commit": name}}
        records.write(
            board.folder, record.model_copy(update={"environment": environment, "data": {"notes": [name]}})
        )
    return make_report(board.folder)


def test_hostile_names_stay_text_in_markdown(hostile):
    rendered = MarkdownIt("gfm-like", {"linkify": False}).render(markdown(hostile))
    tags = {part.split(">")[0].split(" ")[0].strip("/") for part in rendered.split("<")[1:]}
    structure = {
        "h1",
        "h2",
        "h3",
        "p",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "ul",
        "li",
        "strong",
        "pre",
        "code",
    }
    assert tags <= structure
    assert rendered.count("<h1>") == 1
    plain = MarkdownIt("gfm-like", {"linkify": False}).parse(markdown(hostile))
    texts = {
        "".join(child.content for child in token.children)
        for token in plain
        if token.type == "inline" and token.children
    }
    for name in WORSE:
        assert " ".join(name.replace("\0", "\ufffd").split()) in texts, name


def test_hostile_names_stay_text_on_the_page(hostile):
    page = html(hostile)
    assert "<script" not in page.lower()
    assert not any(tag in page.lower() for tag in ("<img", "<svg", "<h1>owned", " style="))
    assert 'http-equiv="Content-Security-Policy" content="default-src \'none\'' in page


HEADINGS = "[...document.querySelectorAll('h1,h2,h3')].map(heading => +heading.tagName[1])"
DEAD = (
    """[...document.querySelectorAll('a[href^="#"]')].filter(a => !document.querySelector(a.hash)).length"""
)


@pytest.mark.browser
def test_the_page_fits_loads_nothing_and_breaks_no_policy(browser, board, tmp_path, axe):
    (path,) = write_report(board, formats=["html"], out=tmp_path)
    for width in (360, 1600):
        opened = Watched(browser, path, width)
        opened.page.evaluate("document.querySelector('details').open = true")
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
        assert opened.complaints == []
        assert opened.requests == [path.as_uri()]
        assert opened.page.locator("h1").all_inner_texts() == ["Reproducibility report"]
        levels = opened.page.evaluate(HEADINGS)
        assert all(below - above <= 1 for above, below in pairwise(levels))
        assert opened.page.evaluate(DEAD) == 0
        assert complaints(opened, axe) == []
        opened.page.close()


def test_the_command_writes_three_files_and_refuses_a_fourth(board, tmp_path, capsys, monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["mimbench", "report", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code or 0, capsys.readouterr()

    status, told = run(str(board), "mae", f"--out={tmp_path}")
    assert status == 0
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["report.html", "report.json", "report.md"]
    assert "report.html" in told.out
    status, told = run(str(board), "--format=pdf")
    assert status == 2
    assert "no format is called 'pdf'" in told.err
