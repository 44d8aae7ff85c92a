"""What a run shows while it works: a live line on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mimbench.executors import Watch
from mimbench.progress import Progress
from mimbench.spec import Job, Record

if TYPE_CHECKING:
    from mimbench.api import Result
    from mimbench.board import Table as Board
    from mimbench.request import About, Request

PLAIN_SECONDS = 10.0  # between two plain lines of one job
REDRAW_SECONDS = 0.1
TOGETHER = "several backbones in one table, a group each: mimbench leaderboard {} --group backbone"


def duration(seconds: float) -> str:
    """``0.4 s``, ``12 s``, ``3 min 05 s``, ``2 h 07 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def facts(progress: Progress) -> str:
    """What a report says beside its share: ``1,234 images/s · loss 0.5123 · 12 s left``."""
    parts = []
    if progress.rate is not None:
        parts.append(f"{progress.rate:,.{0 if progress.rate >= 10 else 1}f} images/s")
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.4g}")
    if progress.seconds_left is not None:
        parts.append(f"{duration(progress.seconds_left)} left")
    return " · ".join(parts)


class Lines(Watch):
    """One line when a job begins, one about every ten seconds, one when it ends."""

    def __init__(self, console: Console):
        self.console = console
        self.job = ""  # "[2/12] mae · pre-training · seed 0"
        self.begun = time.monotonic()
        self.said: float | None = None

    def start(self, job: Job, number: int, total: int) -> None:
        self.job = f"[{number}/{total}] {job.name}"
        self.begun = self.said = time.monotonic()
        self._say(self.job)

    def progress(self, progress: Progress) -> None:
        now = time.monotonic()
        if self.said is None:  # data are looked at before the first job
            self.said = now
        if now - self.said < PLAIN_SECONDS:
            return
        self.said = now
        self._say(f"{self._doing(progress)} {progress.done:.0%}  {facts(progress)}".strip())

    def _doing(self, progress: Progress) -> str:
        """``[2/12] mae · knn · seed 0  extracting features``; the stage where the name does not say it."""
        stage = "" if progress.stage in self.job else f"  {progress.stage}"
        return f"{self.job or 'getting ready'}{stage}"

    def finish(self, job: Job, record: Record) -> None:
        self._say(self._result(record))
        self.job = ""

    def wait(self, jobs: Sequence[Job]) -> None:
        self._say(f"waiting for {self._held(jobs)}")

    def _held(self, jobs: Sequence[Job]) -> str:
        more = f" and {len(jobs) - 1} more" if len(jobs) > 1 else ""
        return f"{jobs[0].name}{more}, which another process works on"

    def _result(self, record: Record) -> str:
        took = duration(time.monotonic() - self.begun)
        if record.status == "failed":
            return f"{self.job}  FAILED after {took}: {record.error}"
        shown = [f"{name} {value:.4g}" for name, value in record.metrics.items()][:1]
        speed = record.cost.get("images_per_second") if record.kind != "evaluate" else None
        shown += [f"{speed:,.0f} images/s"] if speed else []
        return f"{self.job}  done in {took}" + "".join(f" · {part}" for part in shown)

    def _say(self, line: str) -> None:
        self.console.print(Text(line), soft_wrap=True)

    def close(self) -> None:
        """Nothing more will come."""


class LiveLine(Lines):
    """The same on a terminal, where the last line moves."""

    def __init__(self, console: Console):
        super().__init__(console)
        self.live = Live(console=console, transient=True, auto_refresh=False)
        self.drawn = 0.0

    def progress(self, progress: Progress) -> None:
        if time.monotonic() - self.drawn < REDRAW_SECONDS and progress.done < 1:
            return
        self.drawn = time.monotonic()
        told, bar = facts(progress), 20 if self.console.width >= 100 else 8
        name = Text(self._doing(progress))
        name.truncate(max(self.console.width - bar - len(told) - 8, 12), overflow="ellipsis")
        line = Table.grid(padding=(0, 1))
        line.add_row(
            name,
            ProgressBar(total=1, completed=progress.done, width=bar),
            Text(f"{progress.done:4.0%}", style="bold"),
            Text(told, no_wrap=True, overflow="ellipsis"),
        )
        self.live.start()
        self.live.update(line, refresh=True)

    def start(self, job: Job, number: int, total: int) -> None:
        super().start(job, number, total)
        self.progress(Progress("starting", done=0.0))

    def finish(self, job: Job, record: Record) -> None:
        self.close()
        super().finish(job, record)

    def _say(self, line: str) -> None:
        if line == self.job:  # the live line says so
            return
        if line.startswith("waiting"):
            self.live.start()
            self.live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)
            return
        failed = "FAILED" in line
        mark = Text("✗ " if failed else "✓ ", style="red" if failed else "green")
        self.console.print(mark + Text(line), soft_wrap=True)

    def close(self) -> None:
        self.live.stop()
        self.live = Live(console=self.console, transient=True, auto_refresh=False)


def watch_on(console: Console) -> Lines:
    """The way of telling that suits a console."""
    return LiveLine(console) if console.is_terminal and not console.is_dumb_terminal else Lines(console)


def show_result(result: Result, request: Request, console: Console) -> None:
    """What a run came to: the table, what failed, where everything lies."""
    if request.dry_run:
        _show_plan(result, console)
        return
    from mimbench.board import Layout, console_tables, tables

    found = tables(result.frame, Layout(first=request.named_protocols))
    for table in console_tables(found, console.width):
        console.print(table)
    if request.about is not None:
        _show_answer(found, request.about, {job.id for job in result.plan}, console)
    show_sentences(result.plan.left_out, console)
    if len(result.plan.settings) > 1:
        show_sentences([TOGETHER.format(result.folder)], console)
    summary = result.summary
    for job, record in summary.failed:
        console.print(Text(f"failed: {job.name}: {record.error}", style="red"), soft_wrap=True)
    for job in summary.not_run:
        console.print(Text(f"not run: {job.name} (it needs a job that failed)"), soft_wrap=True)
    rows = [(path.suffix.lstrip(".").upper(), path) for path in result.files]
    show_places([*rows, ("records", result.folder / "records")], console)


def _show_answer(found: Sequence[Board], about: About, jobs: set[str], console: Console) -> None:
    """What an experiment asked, and what the results of its jobs tell."""
    from mimbench.report.findings import answer

    console.print(Text(about.question, style="bold"), soft_wrap=True)
    for sentence in answer(found, about, jobs):
        console.print(Text(f"- {sentence}"), soft_wrap=True)


def show_sentences(sentences: Sequence[str], console: Console) -> None:
    """What was left out, and why."""
    for sentence in sentences:
        console.print(Text(sentence, style="dim"), soft_wrap=True)


def show_tables(
    tables: Sequence[Board], folders: Sequence[Path], files: Sequence[Path], console: Console
) -> None:
    """Tables of results folders, and where their files lie."""
    from mimbench.board import console_tables

    for table in console_tables(tables, console.width):
        console.print(table)
    if not tables:
        console.print(f"no results in {', '.join(map(str, folders))} yet", markup=False)
    if not files and len(folders) > 1:
        show_sentences(["Of several folders no files are written unless --out names a folder."], console)
    rows = [(path.suffix.lstrip(".").upper(), path) for path in files]
    show_places([*rows, *(("records", folder / "records") for folder in folders)], console)


def show_places(places: Sequence[tuple[str, Path]], console: Console) -> None:
    """Where files lie, one a line, unbroken so that they can be copied."""
    for name, path in places:
        console.print(Text(f"{name:8}{path}"), soft_wrap=True)


def _show_plan(result: Result, console: Console) -> None:
    plan, done = result.plan, {job.id for job in result.summary.done}
    for setting in plan.settings:
        console.print(Text(setting.label, style="bold"), soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("job", overflow="fold")
    table.add_column("state", no_wrap=True)
    for name in ("images", "PFLOP", "about"):
        table.add_column(name, justify="right", no_wrap=True)
    if with_ids := console.width >= 100:
        table.add_column("id", no_wrap=True, style="dim")
    for job in plan:
        cells = ["", "", ""]
        if estimate := result.estimates.get(job.id):
            cells = [f"{estimate.images:,.0f}", f"{estimate.flops / 1e15:.3g}", duration(estimate.seconds)]
        state = Text("done", style="green") if job.id in done else Text("to do")
        table.add_row(Text(job.name), state, *cells, *([job.id] if with_ids else []))
    console.print(table)
    left = len(plan) - len(done)
    total = duration(sum(estimate.seconds for estimate in result.estimates.values()))
    console.print(f"{len(plan)} jobs, {len(done)} done, {left} to do", highlight=False)
    show_sentences(result.plan.left_out, console)
    if result.estimates:
        console.print(
            f"estimate: {total} of training, from a few measured steps of each method on this machine; "
            "reading data and evaluating come on top",
            highlight=False,
            soft_wrap=True,
        )
