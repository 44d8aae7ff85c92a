"""The Python API: the same names and defaults as the command line."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mimbench import journal, records
from mimbench.errors import UserError, unknown
from mimbench.executors import Summary, Watch
from mimbench.files import make_folder
from mimbench.ledger import FED_ON, Ledger
from mimbench.request import RESULTS, Request, make_request
from mimbench.spec import Record, Setting

if TYPE_CHECKING:
    import pandas as pd
    from lightning_fabric import Fabric

    from mimbench.data import Dataset
    from mimbench.encoder import Encoder
    from mimbench.estimate import Estimate
    from mimbench.executors import Executor
    from mimbench.plan import Plan
    from mimbench.work import Workshop


@dataclass(frozen=True)
class Result:
    """What a run came to.

    summary: jobs done, failed and not run. files: the tables written, CSV and HTML.
    estimates: of a dry run, by job id.
    """

    plan: Plan
    summary: Summary
    folder: Path
    files: tuple[Path, ...] = ()
    estimates: Mapping[str, Estimate] = field(default_factory=dict)
    first: bool = True  # False in all processes of a torchrun launch but one, which tells for all

    @property
    def ok(self) -> bool:
        return not self.summary.failed

    @property
    def frame(self) -> pd.DataFrame:
        """The records of this run, one row each (``mimbench.board.load``)."""
        from mimbench.board import load

        frame = load(self.folder)
        return frame[frame["record"].isin([job.id for job in self.plan])]

    @property
    def table(self) -> pd.DataFrame:
        """The leaderboard of this run, one row a variant and protocol (``mimbench.board.summary``)."""
        from mimbench.board import summary, tables

        return summary(tables(self.frame))


def run(
    methods: str | Sequence[str],
    protocol: str | Sequence[str] = ("linprobe",),
    data: str | Sequence[str] = ("digits",),
    backbone: str | None = None,
    image_size: int | None = None,
    epochs: float | None = None,
    images: float | None = None,
    flops: float | None = None,
    hours: float | None = None,
    recipe: Literal["shared", "paper"] = "shared",
    batch_size: int = 128,
    micro_batch: int | None = None,
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    seeds: int | str | Sequence[int] = (0,),
    set: Mapping[str, Any] | Sequence[str] = {},
    tokenizer: str | None = None,
    teacher: str | None = None,
    baselines: bool = True,
    skip_broken: bool = False,
    workers: int | None = None,
    out: str | Path = RESULTS,
    dry_run: bool = False,
    *,
    watch: Watch | None = None,
) -> Result:
    """Pre-train and evaluate methods under identical settings; do only what the results folder lacks.

    Every argument but ``watch`` is an option of ``mimbench run`` and means the same there.
    watch: hears how the work goes on; by default nobody does.

    Raises UserError for a mistake in the arguments, before any work starts, and where results cannot be
    kept. A job that fails does not raise: see ``Result.ok`` and ``Result.summary``.
    """
    given = {name: value for name, value in locals().items() if name != "watch"}
    return run_request(make_request(given), watch or Watch())


def run_request(request: Request, watch: Watch, executor: Executor | None = None) -> Result:
    """``run`` for a checked request."""
    from mimbench.plan import make_plan
    from mimbench.precision import make_fabric, resolve_precision

    _check_folder(request.out)
    precision = resolve_precision(request.precision)
    together = int(os.environ.get("WORLD_SIZE", 1)) > 1 and "RANK" in os.environ
    fabric = make_fabric(precision) if together and not request.dry_run else None
    if fabric and request.batch_size % fabric.world_size:
        raise UserError(
            f"a batch of {request.batch_size} cannot be shared evenly by {fabric.world_size} processes; "
            "take a multiple of their number as --batch-size"
        )
    first = fabric is None or fabric.is_global_zero
    watch = watch if first else Watch()
    data = _open_data(request, watch) if first else []
    if fabric is not None:
        fabric.barrier()  # the first has prepared the data, the others find it
        data = data or _open_data(request, watch)
    plan = make_plan(request, data, precision, watch.progress)
    ledger = Ledger(request.out)
    done = ledger.done(plan)
    if fabric is not None:
        done = fabric.broadcast(done)  # other processes may write meanwhile; all of these must agree
    left = [job for job in plan if job.id not in done]

    workshop = None
    if left:
        workshop = _workshop(request, data, plan, ledger, fabric)
        _check_builds(plan, workshop, done)
    if request.dry_run:
        from mimbench.estimate import estimate

        estimates = estimate(left, {job.id: job for job in plan}, workshop) if workshop else {}
        finished = tuple(job for job in plan if job.id in done)
        return Result(plan, Summary(finished, (), tuple(left)), request.out, (), estimates)
    if first:
        journal.note(request.out, request, (job.id for job in plan))
    if workshop is None:
        summary = Summary(plan.jobs)
    else:
        from mimbench.executors.local import Local

        for name in ("records", "weights", "locks"):
            make_folder(request.out / name)
        summary = (executor or Local()).execute(plan, workshop, watch)
    files = _write_tables(request) if first else ()
    return Result(plan, summary, request.out, files, first=first)


def _check_folder(folder: Path) -> None:
    """Raise UserError for a results folder that cannot be used, before any work starts."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        problem = "cannot be written" if there.is_dir() else "is not a folder"
        raise UserError(f"cannot keep results in {folder}: {there} {problem}; name another folder with --out")
    if folder.is_dir():
        records.read_folder(folder)  # damaged or newer records stop the tables; better now than at the end


def _open_data(request: Request, watch: Watch) -> list[Dataset]:
    from mimbench.data import open_dataset
    from mimbench.plan import RELEASED_SIZE
    from mimbench.rows import asks_for_released

    size = request.image_size or (RELEASED_SIZE if asks_for_released(request) else None)
    return [
        open_dataset(spec, image_size=size, skip_broken=request.skip_broken, report=watch.progress)
        for spec in dict.fromkeys(request.data)
    ]


def _workshop(
    request: Request, data: Sequence[Dataset], plan: Plan, ledger: Ledger, fabric: Fabric | None
) -> Workshop:
    from mimbench.work import Workshop

    return Workshop(
        *data,
        ledger=ledger,
        setting=plan.setting,
        files=plan.files,
        micro_batch=request.micro_batch,
        workers=_workers() if request.workers is None else request.workers,
        fabric=fabric,
    )


def _workers() -> int:
    """Loading processes where none are asked for: on a CPU they would only take cores from the training."""
    import torch

    if not torch.cuda.is_available():
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, max(0, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) - 1))


def _check_builds(plan: Plan, workshop: Workshop, done: Collection[str]) -> None:
    """Build each method once before any work starts: a wrong size or ratio is known after a second."""
    jobs = {job.id: job for job in plan}
    seen = set()
    for job in plan:
        if job.kind == "evaluate" or job.id in done or job.content["variant"] in seen:
            continue
        seen.add(job.content["variant"])
        try:
            if "released" in job.content:
                from mimbench.weights.adopt import check_size

                check_size(job)
            else:
                workshop.method(job, stand_ins=jobs)
        except UserError as error:
            raise UserError(f"{job.content['variant']}: {error}") from error


def _write_tables(request: Request) -> tuple[Path, ...]:
    from mimbench.board import Layout, write

    if not any((request.out / "records").iterdir()):
        return ()
    return tuple(write(request.out, layout=Layout(first=request.named_protocols)))


def leaderboard(
    folder: str | Path | Sequence[str | Path] = RESULTS,
    format: str | Sequence[str] = ("csv", "html"),
    by: str | Sequence[str] = (),
    at: str = "",
    group: str | Sequence[str] = (),
    protocol: str | Sequence[str] = (),
    seeds: str | int | Sequence[int] = (),
    out: str | Path | None = None,
) -> pd.DataFrame:
    """Write the tables of results folders; the numbers as a DataFrame, one row a variant and protocol.

    Every argument is an option of ``mimbench leaderboard`` and means the same there. An empty ``format``
    writes nothing. Raises UserError where there is no results folder, a record is damaged or newer, two
    records answer for one cell, or an option names what there is not.
    """
    from mimbench.board import draw, summary

    layout = {"by": by, "at": at, "group": group, "protocol": protocol, "seeds": seeds}
    return summary(draw(folder, format, out, **layout)[0])


def published_figures(
    methods: str | Sequence[str] = (), protocol: str = "", metric: str = ""
) -> pd.DataFrame:
    """What papers report, one row a figure with its source; not measured here (``mimbench.published``).

    methods: keys, "mae,beit" or a list. protocol: "linprobe", or a recipe as in "linprobe:mae". Values are
    in percent. Raises UnknownNameError for what no figure has.
    """
    from mimbench.published import find, frame, load

    names = methods.split(",") if isinstance(methods, str) else methods
    keys = [name.strip() for name in names if name.strip()]
    return frame(find(load(), methods=keys, protocol=protocol, metric=metric))


def released_weights(methods: str | Sequence[str] = (), backbone: str = "") -> pd.DataFrame:
    """The catalogue of released weights, one row a file (``mimbench.weights``); asks nothing of a network.

    methods: keys, "mae,beit" or a list. backbone: text in the backbone's name. ``name`` is what ``run`` and
    ``load_encoder`` take; ``at_hand``: "converted", "fetched", "to fetch" or "by hand". Raises UserError for
    what no entry has.
    """
    from mimbench.weights.tell import chosen, frame

    names = methods.split(",") if isinstance(methods, str) else methods
    return frame(chosen([name.strip() for name in names if name.strip()], backbone))


def load_encoder(source: str | Path, out: str | Path = RESULTS, seed: int = 0) -> Encoder:
    """A pre-trained encoder, frozen, which gives tokens for images.

    source: the name of a row ("mae", "mae[mask_ratio=0.5]") of the results folder ``out``, a job id, an
    ``encoder.safetensors`` file or the folder that holds one; or weights from elsewhere as ``run`` takes them
    ("mae@vit_base", "timm:NAME", "hf:REPO", "file:PATH"), fetched and converted if need be.

    Raises UserError where nothing of that name was trained, and where several were (under different
    settings): the message lists their job ids. Also where weights cannot be had or used.
    """
    from mimbench import checkpoint
    from mimbench.weights.given import is_given, resolve

    path = Path(source)
    if path.exists():
        return checkpoint.load_encoder(path)
    if "[" not in str(source).partition("=")[0] and is_given(str(source)):  # no row such as random[like=…]
        return checkpoint.load_encoder(resolve(str(source)).path)
    trained = find_trained(str(source), Path(out), seed)
    return checkpoint.load_encoder(Ledger(Path(out)).weights(trained.id) / FED_ON["pretrain"])


def find_trained(name: str, folder: Path, seed: int) -> Record:
    """The record of a pre-training by the name of its row or by its job id. Raises as ``load_encoder``."""
    trained = [r for r in records.read_folder(folder) if r.kind == "pretrain" and r.status == "done"]
    found = [r for r in trained if name == r.id or (name, seed) == (r.content["variant"], r.content["seed"])]
    if not found:
        known = {r.content["variant"] for r in trained if r.content["seed"] == seed}
        raise unknown(f"encoder trained with seed {seed} in {folder}", name, known)
    if len(found) > 1:
        listed = "; ".join(f"{r.id}: {Setting.model_validate(r.content['setting']).label}" for r in found)
        raise UserError(
            f"{name} was trained under several settings in {folder}, name one by its id ({listed})"
        )
    return found[0]
