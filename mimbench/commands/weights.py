"""``mimbench weights``: what is released, fetched, converted and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

weights_app = typer.Typer(no_args_is_help=True)

NAMES = "Entries of mimbench weights list: 'mae@vit_base,beit@vit_base'."


@weights_app.command("list")
def list_(
    method: Annotated[str, typer.Option(metavar="NAMES", help="Only of these methods: 'mae,beit'.")] = "",
    backbone: Annotated[
        str, typer.Option(metavar="TEXT", help="Only with this in the backbone's name, such as large.")
    ] = "",
    format: Annotated[str, typer.Option(metavar="table|csv|markdown", help="How to print.")] = "table",
) -> None:
    """List the released files: backbone, data, epochs, labels, licence, and whether they are at hand."""
    from mimbench.weights.tell import chosen, listed

    console = Console()
    said = listed(chosen(_split(method), backbone), format, console.width)
    if isinstance(said, str):
        typer.echo(said, nl=False)
    else:
        console.print(said)


@weights_app.command()
def show(name: Annotated[str, typer.Argument(help="An entry of mimbench weights list.")]) -> None:
    """Show all that is known of a released file, with the published figures that belong to it."""
    from mimbench.weights.entries import find_entry
    from mimbench.weights.tell import card

    Console().print(card(find_entry(name)))


@weights_app.command()
def get(
    names: Annotated[str, typer.Argument(help=NAMES)],
    keep: Annotated[bool, typer.Option("--keep", help="Keep the files as they were released, too.")] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Copy the encoders there, too, as NAME.safetensors.")
    ] = None,
) -> None:
    """Fetch released files and convert them; go on after a failure, and end with status 1 then."""
    from mimbench.console import show_sentences, watch_on
    from mimbench.errors import UserError
    from mimbench.weights.cached import get as get_entry
    from mimbench.weights.entries import find_entry
    from mimbench.weights.told import sentence

    entries = [find_entry(name) for name in dict.fromkeys(_split(names))]
    if not entries:
        raise UserError("no released weights are named; mimbench weights list lists all")
    failed = []
    watch = watch_on(Console(stderr=True))
    for entry in entries:
        try:
            path = get_entry(entry, keep, out, watch.progress)
        except UserError as error:
            failed.append(entry.name)
            said = f"failed: {error}"
        else:
            said = sentence(path, entry.name)
        finally:
            watch.close()
        typer.echo(said, err=entry.name in failed)
    if failed:
        show_sentences([f"not fetched: {', '.join(failed)}"], Console(stderr=True))
        raise typer.Exit(1)


@weights_app.command()
def check(
    names: Annotated[str, typer.Argument(help=f"{NAMES} By default all that are converted.")] = "",
    file: Annotated[
        Path | None,
        typer.Argument(help="A foreign file: whether it is of the entry's layout. Writes nothing."),
    ] = None,
) -> None:
    """Check converted files: readable, finite, of the known file, up to date; status 1 if one is not."""
    from mimbench.weights.checking import checked, faults_of_foreign
    from mimbench.weights.entries import find_entry

    if file is not None:
        results = {str(file): faults_of_foreign(file, find_entry(names))}
    else:
        results = checked(_split(names))
    for name, faults in results.items():
        for fault in faults or ["ok"]:
            typer.echo(f"{name}: {fault}")
    if not results:
        typer.echo("no converted files are in the cache; mimbench weights get NAME makes one")
    raise typer.Exit(1 if any(results.values()) else 0)


@weights_app.command()
def convert(
    path: Annotated[Path, typer.Argument(help="A file that somebody else's code wrote.")],
    as_: Annotated[str, typer.Option("--as", metavar="NAME", help="The entry whose layout it has.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to; by default where runs look for NAME.")
    ] = None,
    own: Annotated[
        str, typer.Option(metavar="TITLE", help="These are not NAME's weights but your own, called TITLE.")
    ] = "",
    method: Annotated[str, typer.Option(metavar="KEY", help="Of --own: another method's.")] = "",
    backbone: Annotated[
        str, typer.Option(metavar="NAME", help="Of --own: another backbone, such as vit_small_patch16.")
    ] = "",
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Of --own: in pixels, if other than NAME's.")
    ] = None,
    set: Annotated[
        list[str], typer.Option("--set", metavar="OPTION=VALUE", help="Of --own: of the backbone.")
    ] = [],  # noqa: B006
) -> None:
    """Convert a file at hand: NAME's, fetched by hand; or your own of the same layout, with --own.

    Without --out the released file takes its place in the cache, and mimbench run --methods NAME finds it;
    your own goes to TITLE.safetensors, for mimbench run --methods TITLE=file:TITLE.safetensors.
    """
    from mimbench.errors import UserError
    from mimbench.weights.entries import find_entry
    from mimbench.weights.taking import parse_options, take, take_own
    from mimbench.weights.told import sentence

    entry = find_entry(as_)
    if own:
        made = take_own(
            path,
            entry,
            own,
            method=method,
            backbone=backbone,
            image_size=image_size,
            options=parse_options(set),
            out=out,
        )
        typer.echo(sentence(made, own))
        typer.echo(f"mimbench run --methods {own}=file:{made} evaluates it")
        return
    if method or backbone or image_size or set:
        raise UserError(
            "--method, --backbone, --image-size and --set are for weights of your own, and "
            f"{as_} is released as it is; add --own TITLE"
        )
    typer.echo(sentence(take(path, entry, out), entry.name))


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]
