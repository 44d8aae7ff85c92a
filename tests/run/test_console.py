"""What a run says while it works."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from mimbench import console
from mimbench.console import Lines, LiveLine, duration, facts, watch_on
from mimbench.progress import Progress
from mimbench.spec import Record

from .pieces import job

JOB = job("pretrain", "mae")


def ended(**changes) -> Record:
    fields = {"id": JOB.id, "kind": JOB.kind, "name": JOB.name, "status": "done", "content": JOB.content}
    return Record(**{**fields, "started": "a", "finished": "b", **changes})


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(console.time, "monotonic", lambda: Clock.now)
    return Clock


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7620, "2 h 07 min"),
    ],
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text


def test_a_report_shows_what_it_knows():
    report = Progress("pre-training", 0.5, rate=1234.5, loss=0.51234, seconds_left=12)
    assert facts(report) == "1,234 images/s · loss 0.5123 · 12 s left"
    assert facts(Progress("training the probe", 0.5)) == ""


def test_plain_lines_come_every_ten_seconds_and_not_more(clock):
    file = io.StringIO()
    lines = Lines(Console(file=file, width=40))
    lines.start(JOB, 2, 12)
    for _ in range(250):
        clock.now += 0.1
        lines.progress(Progress("warming up", 0.5, rate=100, loss=0.5, seconds_left=30))
    clock.now += 3
    lines.finish(JOB, ended(cost={"images_per_second": 99.0}))
    said = file.getvalue().splitlines()
    assert said[0] == "[2/12] mae · pretrain"
    assert said[1:3] == ["[2/12] mae · pretrain  warming up 50%  100 images/s · loss 0.5 · 30 s left"] * 2
    assert said[3:] == ["[2/12] mae · pretrain  done in 28 s · 99 images/s"]


def test_a_failure_is_told_with_its_reason(clock):
    file = io.StringIO()
    lines = Lines(Console(file=file, width=40))
    lines.start(JOB, 1, 1)
    lines.finish(JOB, ended(status="failed", error="the loss became nan at step 3"))
    assert "FAILED after 0.0 s: the loss became nan at step 3" in file.getvalue()


def test_waiting_names_what_is_waited_for():
    file = io.StringIO()
    Lines(Console(file=file, width=40)).wait([JOB, JOB])
    assert "waiting for mae · pretrain and 1 more, which another process works on" in file.getvalue()


def test_on_a_terminal_one_line_moves_and_what_ended_stays(clock):
    file = io.StringIO()
    live = watch_on(Console(file=file, width=120, force_terminal=True))
    assert isinstance(live, LiveLine)
    live.start(JOB, 2, 12)
    clock.now += 1
    live.progress(Progress("pre-training", 0.25, rate=100, loss=0.5, seconds_left=30))
    live.finish(JOB, ended())
    live.close()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    assert re.search(
        r"\[2/12\] mae · pretrain +pre-training .* 25% +100 images/s · loss 0.5 · 30 s left", text
    )
    assert text.rstrip().endswith("✓ [2/12] mae · pretrain  done in 1.0 s")


def test_colours_stay_out_where_nobody_wants_them(clock, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    file = io.StringIO()
    live = watch_on(Console(file=file, width=80, force_terminal=True))
    live.start(JOB, 1, 1)
    live.finish(JOB, ended(status="failed", error="no"))
    assert not re.search(r"\x1b\[3\dm", file.getvalue())


def test_in_a_pipe_nothing_moves():
    assert type(watch_on(Console(file=io.StringIO()))) is Lines


def test_on_a_narrow_terminal_the_figures_stay_readable(clock):
    file = io.StringIO()
    live = LiveLine(Console(file=file, width=72, force_terminal=True))
    live.start(job("pretrain", "mae[decoder_depth=2,mask_ratio=0.9,norm_pix=false]"), 2, 12)
    clock.now += 1
    live.progress(Progress("pretrain", 0.25, rate=100, loss=0.5, seconds_left=30))
    live.close()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    assert "25% 100 images/s · loss 0.5 · 30 s left" in text
    assert all(len(line) <= 72 for line in re.split(r"[\r\n]", text))
