"""Pages of the documentation that are made while it is built, out of what is registered: they never go stale.

A hook of mkdocs (``hooks:`` in mkdocs.yml). One page a method and protocol from cards, settings and
presets, their lists, and the commands with all options.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

import typer

from mimbench import registry, settings
from mimbench.cli import app
from mimbench.spec import Card, Role
from mimbench.weights.entries import entries, entries_of
from mimbench.weights.entry import Entry

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROLES = {
    "method": "Methods",
    "floor": "Floors: no pre-training",
    "ceiling": "Ceiling: trained with the labels",
    "tokenizer": "Tokenizers that other methods learn from",
}


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Called by mkdocs once it has listed ``docs``: the pages made here join the list."""
    from mkdocs.structure.files import File

    for path, content in pages().items():
        files.append(File.generated(config, path, content=content))
    return files


def pages() -> dict[str, str]:
    """Markdown by path. Only what this project ships: plug-ins of whoever builds the pages stay out."""
    methods = {k: cls for k, cls in registry.methods().items() if cls.__module__.startswith("method_zoo.")}
    protocols = {k: cls for k, cls in registry.protocols().items() if cls.__module__.startswith("protocols.")}
    return {
        "methods/index.md": methods_page(methods),
        **{f"methods/{key}.md": method_page(cls) for key, cls in methods.items()},
        "protocols/index.md": protocols_page(protocols),
        **{f"protocols/{key}.md": protocol_page(cls) for key, cls in protocols.items()},
        "reference/commands.md": commands_page(),
        "reference/weights.md": weights_page(methods),
    }


def prose(text: str) -> str:
    """Text of docstrings and cards as Markdown: code in backticks stays code, the rest is no markup."""
    parts = re.split(r"(``.+?``|`[^`]+`)", text, flags=re.DOTALL)
    parts[::2] = [re.sub(r"([\\*_<>\[\]#|])", r"\\\1", part) for part in parts[::2]]
    return "".join(parts)


def code(text: str) -> str:
    """Inline code that may stand in a table."""
    return f"`` {text} ``".replace("|", r"\|") if "`" in text else f"`{text}`".replace("|", r"\|")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table of cells that are Markdown already; "" where there are no rows."""
    lines = ["| " + " | ".join(" ".join(cell.split()) for cell in row) + " |" for row in rows]
    if not lines:
        return ""
    return "\n".join(["| " + " | ".join(head) + " |", "|" + " --- |" * len(head), *lines]) + "\n"


def facts(rows: Iterable[tuple[str, str]]) -> str:
    return table(("", ""), ((f"**{name}**", value) for name, value in rows if value))


def paragraphs(cls: type) -> str:
    return prose(inspect.getdoc(cls) or "")


def settings_table(cls: type, key: str) -> str:
    rows = settings.ranges(cls)
    shown = table(
        ("setting", "default", "allowed"),
        ((code(f"{key}.{name}"), code(default), prose(allowed)) for name, default, allowed in rows),
    )
    return shown or "No settings.\n"


def source(cls: type) -> str:
    return code(cls.__module__.replace(".", "/") + ".py")


# Methods ----------------------------------------------------------------------------------------------


def methods_page(methods: Mapping[str, Any]) -> str:
    parts = [
        "# Methods\n",
        "Every row below is a name for `--methods`. A page of its own has the card, the settings and the "
        "published recipe; `mimbench methods show NAME` prints the same. Tokens and the cost of a step stand "
        "in the README's table.\n",
    ]
    for role in get_args(Role):
        rows = [
            (
                f"[`{key}`]({key}.md)",
                prose(cls.card.name) + (f", {cls.card.year}" if cls.card.year else ""),
                prose(cls.card.masking),
                prose(cls.card.target),
                learns_from(cls) or "–",
                cls.card.parity,
            )
            for key, cls in methods.items()
            if cls.card.role == role
        ]
        head = ("key", "name", "masking", "target", "learns from", "parity")
        parts += [f"## {ROLES[role]}\n", table(head, rows)]
    return "\n".join(parts)


def learns_from(cls: Any) -> str:
    """ "teacher [`ibot`](ibot.md)" and the like."""
    told = [
        f"{prose(name)} [`{default}`]({default}.md)" if default else f"{prose(name)}, if one is given"
        for name, default in sorted(cls.needs.items())
    ]
    return ", ".join((["labels"] if cls.card.external == "labels" else []) + told)


def method_page(cls: Any) -> str:
    card: Card = cls.card
    paper = prose(card.paper) + (f" ({prose(card.authors)}, {card.year})" if card.authors else "")
    rows = [
        ("paper", f"[{paper}](https://arxiv.org/abs/{card.arxiv})" if card.arxiv else paper),
        ("official code", f"<{card.code}>" if card.code else ""),
        ("released weights", "<br>".join(map(released, entries_of(card.key)))),
        ("role", card.role),
        ("scheme", prose(card.scheme)),
        ("masking", prose(card.masking)),
        ("target", prose(card.target)),
        ("architecture", prose(card.architecture)),
        ("objective", prose(card.objective)),
        ("learns from", learns_from(cls) or "the images alone"),
        ("version", str(card.version)),
        ("parity", card.parity),
        ("readout", code(card.readout.label)),
        ("mean, std", code(f"{settings.show(card.mean)}, {settings.show(card.std)}")),
        ("asks of the encoder", code(settings.show(card.backbone)) if card.backbone else ""),
        ("notes", prose(card.notes)),
        ("source", source(cls)),
    ]
    parts = [f"# {prose(card.name)}\n", paragraphs(cls) + "\n", facts(rows)]
    parts += ["## Settings\n", settings_table(cls, card.key), "## Published recipe\n", recipe(card)]
    return "\n".join(parts)


def released(entry: Entry) -> str:
    told = " (trained on labels)" if entry.labels else ""
    return f"[{code(entry.name)}](../reference/weights.md#{entry.method}) {prose(entry.trained_on)}{told}"


def recipe(card: Card) -> str:
    if card.recipe is None:
        return "It is never trained.\n"
    content = card.recipe.content()
    whence, augmentation = content.pop("source"), content.pop("augmentation")
    rows = {k: v for k, v in content.items() if v not in (None, [])}
    rows |= {f"augmentation.{k}": v for k, v in augmentation.items() if v is not None}
    shown = table(("", ""), ((code(name), code(settings.show(value))) for name, value in rows.items()))
    return f"What `--recipe paper` trains with. Source: {prose(whence)}.\n\n{shown}"


# Released weights -------------------------------------------------------------------------------------


def weights_page(methods: Mapping[str, Any]) -> str:
    """The catalogue, a section a method."""
    found = list(entries().values())
    parts = [
        "# Released weights\n",
        f"The catalogue: {len(found)} files of {len({entry.method for entry in found})} methods, as "
        "`mimbench weights list` prints them. Every name stands for `--methods`; [Released weights compared]"
        "(../released.md) tells how. *Told* is the most that pre-training was told beside the images.\n",
    ]
    head = ("name", "backbone", "pixels", "pre-trained on", "told", "licence", "from")
    for method in dict.fromkeys(entry.method for entry in found):
        own = entries_of(method)
        title = own[0].title or (methods[method].card.name if method in methods else "")
        card = f"[{prose(title)}](../methods/{method}.md)" if method in methods else prose(title)
        parts += [f"## {prose(method)}\n", f"{card}\n" if card else "", table(head, map(weights_row, own))]
    return "\n".join(parts)


def weights_row(entry: Entry) -> tuple[str, ...]:
    told = "labels, by training on them" if entry.labels else entry.external
    return (
        code(entry.name),
        code(entry.backbone),
        str(entry.image_size),
        prose(entry.trained_on),
        "–" if told == "none" else prose(f"{told}: {entry.learned_from}" if entry.learned_from else told),
        prose(entry.licence),
        prose(entry.source),
    )


# Protocols --------------------------------------------------------------------------------------------


def protocols_page(protocols: Mapping[str, Any]) -> str:
    rows = [
        (
            f"[`{key}`]({key}.md)",
            prose(cls.summary),
            cls.task,
            prose(cls.metric),
            code(f"mimbench[{cls.requires[1]}]") if cls.requires else "–",
            str(len(cls.presets) or "–"),
        )
        for key, cls in protocols.items()
    ]
    head = ("key", "what it measures", "data for", "metric", "needs", "official recipes")
    return (
        "# Protocols\n\nEvery row below is a name for `--protocol`; `mimbench protocols` prints the same. "
        "*Needs* names the extra that must be installed.\n\n" + table(head, rows)
    )


def protocol_page(cls: Any) -> str:
    rows = [
        ("measures", prose(cls.summary)),
        ("column", code(f"{cls.key}@{cls.version}")),
        ("data for", cls.task),
        ("metric", prose(cls.metric) + ("" if cls.unit == "share" else ", a plain number")),
        ("ranks methods", "yes" if cls.ranked else "no: more is not better"),
        ("needs", code(f"pip install 'mimbench[{cls.requires[1]}]'") if cls.requires else ""),
        ("source", source(cls)),
    ]
    parts = [f"# {cls.key}\n", paragraphs(cls) + "\n", facts(rows)]
    parts += ["## Settings\n", settings_table(cls, cls.key)]
    if cls.presets:
        recipes = (
            (
                code(f"{cls.key}:{name}"),
                "<br>".join(code(f"{k}={settings.show(v)}") for k, v in preset.fields.items()),
                prose(preset.source),
            )
            for name, preset in cls.presets.items()
        )
        parts += ["## Official recipes\n", table(("name", "settings", "where it stands"), recipes)]
    return "\n".join(parts)


# Commands ---------------------------------------------------------------------------------------------


def commands_page() -> str:
    parts = ["# Commands\n", "The same as `mimbench --help` and `mimbench COMMAND --help` print.\n"]
    return "\n".join([*parts, *commands(typer.main.get_command(app), ("mimbench",))])


def commands(command: Any, words: tuple[str, ...]) -> list[str]:
    """A section for each command, depth first."""
    inner = getattr(command, "commands", {})
    parts = []
    if len(words) > 1 and (not inner or command.invoke_without_command):
        context = typer.Context(command)
        shown = [param for param in command.params if not param.hidden]
        options = [param for param in shown if param.param_type_name != "argument"]
        usage = [
            piece for param in shown if param not in options for piece in param.get_usage_pieces(context)
        ]
        usage = [*words, *usage, *(["[OPTIONS]"] if options else [])]
        parts += [f"## {' '.join(words)}\n", prose(inspect.cleandoc(command.help or "")) + "\n"]
        parts += [code(" ".join(usage)) + "\n"]
        parts += [table(("", "", "default"), (parameter(param, context) for param in shown))]
    for name, child in inner.items():
        parts += commands(child, (*words, name))
    return parts


def parameter(param: Any, context: Any) -> tuple[str, str, str]:
    """How it is written, what it says, its default."""
    if param.param_type_name == "argument":
        written = " ".join(param.get_usage_pieces(context))
    else:
        written = param.get_help_record(context)[0]
    default = "" if param.default is None or callable(param.default) else str(param.default)
    help_text = (param.help or "").replace("\\[", "[")  # rich's escape of an opening bracket
    return code(written), prose(help_text), "" if default in ("", "[]", "()", "False") else code(default)
