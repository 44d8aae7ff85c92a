"""The command line: parse, call, print. What it does is in ``mimbench.api``."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from mimbench import __version__
from mimbench.commands import repro
from mimbench.commands.doctor import doctor_app
from mimbench.commands.experiments import experiments_app
from mimbench.commands.leaderboard import leaderboard
from mimbench.commands.published import published
from mimbench.commands.survey import taxonomy_app
from mimbench.commands.weights import weights_app
from mimbench.errors import UserError
from mimbench.request import RESULTS, Request
from mimbench.show import KINDS

STOPPED = "stopped; run the same command again to go on"


class Commands(TyperGroup):
    """A user's mistake is one line on stderr, never a traceback; a run that is stopped says how to go on."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            _tell(f"error: {error}")
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            _tell(STOPPED)
            raise SystemExit(130) from None
        except SystemExit as ended:
            if ended.code == 128 + signal.SIGTERM:
                _tell(STOPPED)
            raise


def _tell(sentence: str) -> None:
    if os.environ.get("RANK", "0") == "0":  # the processes of a torchrun launch end alike
        print(sentence, file=sys.stderr)


app = typer.Typer(
    name="mimbench",
    cls=Commands,
    help="Compare masked-image-modelling pre-training methods under identical settings.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
methods_app = typer.Typer(invoke_without_command=True)
data_app = typer.Typer(no_args_is_help=True)
app.add_typer(methods_app, name="methods", help="List the methods, or show one.")
app.add_typer(
    experiments_app, name="experiments", help="List the survey's questions as experiments, or print one."
)
app.add_typer(taxonomy_app, name="taxonomy", help="Draw the survey's taxonomy of the methods.")
app.add_typer(doctor_app, name="doctor", help="Look at the installation, or at weights.")
app.add_typer(data_app, name="data", help="Look at datasets.")
app.add_typer(weights_app, name="weights", help="List, fetch, convert and check released weights.")


def _option(name: str, *flags: str, **more: Any) -> Any:
    """An option of ``run``, described where it is defined."""
    return typer.Option(*flags, help=escape(Request.model_fields[name].description or ""), **more)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"mimbench {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    context: typer.Context,
    file: Annotated[
        Path | None,
        typer.Argument(
            help="A YAML file with the options below as keys, or the name of a shipped experiment "
            "(mimbench experiments lists them); options override it."
        ),
    ] = None,
    methods: Annotated[str | None, _option("methods", metavar="NAMES")] = None,
    protocol: Annotated[str, _option("protocol", metavar="NAMES")] = "linprobe",
    data: Annotated[str, _option("data", metavar="SPECS")] = "digits",
    backbone: Annotated[str | None, _option("backbone", metavar="NAME")] = None,
    image_size: Annotated[int | None, _option("image_size")] = None,
    epochs: Annotated[float | None, _option("epochs")] = None,
    images: Annotated[float | None, _option("images")] = None,
    flops: Annotated[float | None, _option("flops")] = None,
    hours: Annotated[float | None, _option("hours")] = None,
    recipe: Annotated[str, _option("recipe", metavar="shared|paper")] = "shared",
    batch_size: Annotated[int, _option("batch_size")] = 128,
    micro_batch: Annotated[int | None, _option("micro_batch")] = None,
    precision: Annotated[str, _option("precision", metavar="auto|fp32|bf16|fp16")] = "auto",
    seeds: Annotated[str, _option("seeds", metavar="NUMBERS")] = "0",
    set: Annotated[list[str], _option("set", "--set", metavar="NAME.SETTING=VALUE")] = [],  # noqa: B006
    tokenizer: Annotated[str | None, _option("tokenizer", metavar="SOURCE")] = None,
    teacher: Annotated[str | None, _option("teacher", metavar="SOURCE")] = None,
    baselines: Annotated[bool, _option("baselines")] = True,
    skip_broken: Annotated[bool, _option("skip_broken", "--skip-broken")] = False,
    workers: Annotated[int | None, _option("workers")] = None,
    out: Annotated[Path, _option("out", metavar="FOLDER")] = RESULTS,
    dry_run: Annotated[bool, _option("dry_run", "--dry-run")] = False,
) -> None:
    """Pre-train methods, evaluate them, print the leaderboard; do only what is not done yet.

    Interrupted and started again, it goes on where it was. Exit status: 0 when all went well, 1 when a
    job failed, 2 for a mistake in what was asked, 130 after Ctrl-C.
    """
    from mimbench import experiments, request

    given = {
        name: value
        for name, value in context.params.items()
        if name != "file" and getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    }
    asked = request.make_request(
        request.merge(request.read_file(experiments.find(file)) if file else {}, given)
    )

    from mimbench.api import run_request
    from mimbench.console import show_result, watch_on

    watch = watch_on(Console(stderr=True))
    try:
        result = run_request(asked, watch)
    finally:
        watch.close()
    if result.first:
        show_result(result, asked, Console())
    raise typer.Exit(0 if result.ok else 1)


app.command()(leaderboard)


@app.command()
def show(
    rows: Annotated[str, typer.Argument(help="Rows of the results folder: 'mae,random'; or job ids.")],
    what: Annotated[str, typer.Option(help=f"{', '.join(KINDS)}; by default all that can be.")] = "",
    data: Annotated[str, typer.Option(metavar="SPECS", help="The images, named as for run.")] = "digits",
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Results folder.")] = RESULTS,
    images: Annotated[int, typer.Option(help="How many images.")] = 6,
    seed: Annotated[int, typer.Option(help="That the rows were trained with.")] = 0,
    to: Annotated[Path | None, typer.Option(help="Where to; RESULTS/pictures by default.")] = None,
) -> None:
    """Draw pictures of trained rows: masks and predictions, attention, tokens, neighbours, segmentations."""
    from mimbench.console import show_places, show_sentences, watch_on
    from mimbench.show import show as draw

    watch = watch_on(Console(stderr=True))
    try:
        shown = draw(rows, what, data, out, images, seed, to, report=watch.progress)
    finally:
        watch.close()
    show_places([("PNG", path) for path in shown.files], Console())
    show_sentences(shown.left_out, Console())


@methods_app.callback()
def methods(context: typer.Context) -> None:
    """List the methods."""
    if context.invoked_subcommand is None:
        from mimbench.catalogue import methods_table

        Console().print(methods_table())


@methods_app.command("show")
def methods_show(name: Annotated[str, typer.Argument(help="Key of a method.")]) -> None:
    """Show a method's card, recipe and settings."""
    from mimbench.catalogue import method_card

    Console().print(method_card(name))


@methods_app.command("table")
def methods_table(
    backbone: Annotated[str, typer.Option(help="Encoder whose steps are counted.")] = "vit_tiny_patch16",
    image_size: Annotated[int, typer.Option(help="In pixels.")] = 224,
    format: Annotated[str, typer.Option(help="markdown or csv.")] = "markdown",
) -> None:
    """Print the methods with the tokens and the relative cost of a step, counted on the CPU."""
    from mimbench.errors import unknown
    from mimbench.method_table import markdown, methods_frame

    if format not in ("markdown", "csv"):
        raise unknown("format", format, ("markdown", "csv"))
    frame = methods_frame(backbone, image_size)
    typer.echo(markdown(frame) if format == "markdown" else frame.to_csv(index=False), nl=False)


@app.command()
def protocols() -> None:
    """List the evaluation protocols with their settings."""
    from mimbench.catalogue import protocols_table

    Console().print(protocols_table())


@data_app.command("check")
def data_check(
    spec: Annotated[str, typer.Argument(help="A dataset, named as for run --data.")],
) -> None:
    """Read every image of a dataset and say what is there: sizes, classes, splits, broken files."""
    from mimbench.catalogue import data_report

    report, sound = data_report(spec)
    Console().print(report)
    raise typer.Exit(0 if sound else 1)


app.command()(repro.report)
app.command()(repro.verify)
app.command()(repro.compare)
app.command()(published)


def main() -> None:
    """The console script ``mimbench``."""
    # torch's CPU threads spin for milliseconds while they wait for each other, which beside any other busy
    # process makes a training step of a small model ten times slower. A short spin costs nothing where they
    # are alone (28 against 33 ms a step) and little where not. Read by GNU's OpenMP when torch loads.
    os.environ.setdefault("GOMP_SPINCOUNT", "30000")
    # The same holds for the threads of numpy's and scipy's BLAS, which have nothing large to compute here.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    app()
