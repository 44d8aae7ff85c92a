"""What there is to choose from, drawn for a terminal: methods, protocols, a dataset, the installation."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, get_args

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mimbench import registry, settings
from mimbench.spec import Card, Role
from mimbench.weights.entries import entries_of
from mimbench.weights.entry import Entry

if TYPE_CHECKING:
    from mimbench.data.counting import Content


def _table(*columns: str, **options: object) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, **options)  # type: ignore[arg-type]
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


def _facts(rows: list[tuple[str, str]], title: str = "") -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, title=title, title_justify="left")
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, value in rows:
        if value:
            table.add_row(Text(name), Text(value))
    return table


def _settings(cls: type, key: str) -> RenderableType:
    rows = settings.ranges(cls)
    if not rows:
        return Text("no settings")
    table = _table("setting", "default", "allowed")
    for name, default, allowed in rows:
        table.add_row(Text(f"{key}.{name}"), Text(default), Text(allowed))
    return table


def methods_table() -> RenderableType:
    """All methods and baselines, tokenizers last."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("method", "name", "year", "external", "masking", "target"):
        table.add_column(name, no_wrap=name in ("method", "year", "external"), min_width=len(name))
    cards = [cls.card for cls in registry.methods().values()]
    for role in get_args(Role):
        table.add_section()
        for card in (card for card in cards if card.role == role):
            name = card.name if role == "method" else f"{card.name} ({role})"
            about = (card.external, card.masking, card.target)
            cells = (name, str(card.year or ""), *("" if text == "none" else text for text in about))
            table.add_row(Text(card.key, style="bold"), *map(Text, cells))
    return Group(table, Text("mimbench methods show NAME tells all about one.", style="dim"))


def method_card(key: str) -> RenderableType:
    """Everything known of one method. Raises UnknownNameError."""
    cls = registry.find_method(key)
    card = cls.card
    paper = card.paper + (f" ({card.authors}, {card.year})" if card.authors else "")
    rows = [
        ("key", card.key),
        ("name", card.name),
        ("paper", paper),
        ("arXiv", f"https://arxiv.org/abs/{card.arxiv}" if card.arxiv else ""),
        ("official code", card.code),
        ("released weights", "\n".join(_released(entry) for entry in entries_of(card.key))),
        ("role", card.role),
        ("scheme", card.scheme),
        ("masking", card.masking),
        ("target", card.target),
        ("architecture", card.architecture),
        ("objective", card.objective),
        ("survey's classes", _filed(card)),
        ("external", card.external),
        *((name, default or "none unless one is given") for name, default in cls.needs.items()),
        ("version", str(card.version)),
        ("parity", card.parity),
        ("readout", card.readout.label),
        ("mean, std", f"{settings.show(card.mean)}, {settings.show(card.std)}"),
        ("backbone options", settings.show(card.backbone) if card.backbone else ""),
        ("notes", card.notes),
        ("source", inspect.getsourcefile(cls) or ""),
    ]
    return Group(_facts(rows), Text(), _settings(cls, key), *_recipe(card))


def _released(entry: Entry) -> str:
    """A line on released weights: their name, what they were trained on, whether on labels."""
    return f"{entry.name}  {entry.trained_on}" + ("  (trained on labels)" if entry.labels else "")


def _filed(card: Card) -> str:
    """Where the survey's taxonomy files a method, "" where it was not filed."""
    filed = card.classes.model_dump() if card.classes else {}
    return ", ".join(f"{criterion} {classes}" for criterion, classes in filed.items())


def _recipe(card: Card) -> list[RenderableType]:
    if card.recipe is None:
        return [Text("never trained")]
    content = card.recipe.content()
    augmentation = content.pop("augmentation")
    rows = [(name, settings.show(value)) for name, value in content.items() if value not in (None, [])]
    rows += [(f"augmentation.{name}", settings.show(value)) for name, value in augmentation.items()]
    return [_facts(rows, "published recipe, --recipe paper")]


def protocols_table() -> RenderableType:
    """All protocols with their settings."""
    parts: list[RenderableType] = []
    for key, cls in registry.protocols().items():
        head = Text.assemble((f"{key}@{cls.version}", "bold"), f"  {cls.summary} ({cls.task}, {cls.metric})")
        parts += [head, _settings(cls, key)]
        recipes = [(f"{key}:{name}", preset.source) for name, preset in cls.presets.items()]
        parts += [_facts(recipes, "official recipes")] if recipes else []
    return Group(*parts)


def data_report(spec: str) -> tuple[RenderableType, bool]:
    """What a dataset holds, and whether a run would take it. Raises UserError where there is nothing."""
    from mimbench.data import check

    found = check(spec)
    rows = [
        ("dataset", found.name),
        ("task", found.task if found.classes else ""),
        ("given", _counts(found.given)),
        ("splits", _counts(found.splits)),
        ("", found.rule),
        ("classes", _classes(found.classes)),
        *((f"images a class, {k}", f"{v['min']} to {v['max']}") for k, v in found.per_class.items()),
        *(row for split, content in found.contents.items() for row in _content(split, content)),
        ("short side", _counts(found.short_side) + " px" if found.short_side else ""),
        ("common sizes", _counts(found.common_sizes)),
        *((f"fingerprint, {name}", digest) for name, digest in found.fingerprints.items()),
        ("duplicates", _counts({k: n for k, n in found.duplicates.items() if n}) or "none"),
        *(("broken", f"{name}: {reason}") for name, reason in found.broken.items()),
    ]
    verdicts = [Text(f"warning: {sentence}", style="yellow") for sentence in found.warnings]
    verdicts += [Text(f"problem: {sentence}", style="red") for sentence in found.problems]
    verdicts += [Text("ready to run", style="green")] if found.ok else []
    return Group(_facts(rows), *verdicts), found.ok


def _classes(names: tuple[str, ...] | None) -> str:
    if names is None:
        return "none (unlabelled)"
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"{len(names)}: {', '.join(names[:10])}{more}"


def _content(split: str, content: Content) -> list[tuple[str, str]]:
    """Rows on what the annotated images of one split show."""
    if content.pixels:
        marked = f"{content.ignored:.1%} of the pixels have no class"
        amounts = {name: f"{share:.2%}" for name, share in content.pixels.items()}
        ordered = sorted(content.pixels, key=lambda name: -content.pixels[name])
    else:
        marked = f"{sum(content.objects.values()):,} objects, {content.crowds} of them crowds"
        marked += f", {content.degenerate} without area" * bool(content.degenerate)
        amounts = {name: f"{count:,}" for name, count in content.objects.items()}
        ordered = sorted(content.objects, key=lambda name: -content.objects[name])
    marked += f"; {content.bare:,} images with nothing marked"
    occurring = [name for name in ordered if content.images[name]]  # a warning names the others
    shown = [f"{name} {amounts[name]} (in {content.images[name]:,} images)" for name in occurring]
    if len(shown) > 12:  # the commonest and the rarest
        shown = [*shown[:6], "…", *shown[-6:]]
    return [(f"annotations, {split}", marked), ("", ", ".join(shown))]


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def doctor_report() -> tuple[RenderableType, bool]:
    """The state of the installation, and whether runs would work."""
    from mimbench.doctor import examine, healthy

    styles = {"ok": "green", "absent": "dim", "warn": "yellow", "missing": "red"}
    checks = examine()
    table = _table("", "", "found", "what to do")
    group = ""
    for check in checks:
        if check.group != group:
            table.add_section()
        name = check.group if check.group != group else ""
        group = check.group
        found = Text(f"{'' if check.status == 'ok' else check.status + ': '}{check.found}")
        found.stylize(styles[check.status])
        table.add_row(Text(name, style="bold"), Text(check.name), found, Text(check.advice))
    verdict = "all that runs need is there" if healthy(checks) else "something that runs need is missing"
    return Group(table, Text(verdict)), healthy(checks)
