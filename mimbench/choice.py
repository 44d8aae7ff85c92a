"""Which protocols a request names, with their settings and the data sets each is evaluated on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from mimbench import registry, settings
from mimbench.errors import UserError, unknown
from mimbench.request import ALL
from mimbench.variants import Assignments

if TYPE_CHECKING:
    from mimbench.data import Dataset
    from mimbench.protocol import Protocol

# How a data set of each task is named, for messages.
EXAMPLES = {"classification": "imagefolder:PATH", "segmentation": "ade20k:PATH", "detection": "coco:PATH"}


@dataclass(frozen=True)
class Choice:
    """A protocol with all its fields, on one data set.

    preset: the official recipe's name, "" for none. built_on: see ``Protocol.built_on``.
    """

    cls: type[Protocol]
    preset: str
    fields: dict[str, Any]
    data: Dataset
    built_on: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"{self.cls.key}:{self.preset}" if self.preset else self.cls.key


def choose_protocols(
    wanted: Sequence[str], data: Sequence[Dataset], assigned: Assignments
) -> tuple[list[Choice], tuple[str, ...]]:
    """The protocols that are wanted, on all data sets that suit them; and sentences on what was left out.

    wanted: keys, ``key:preset``, or "all" for each protocol that suits some of the data. What is wanted by
    its own name must suit: otherwise UserError. "all" leaves out what does not.
    """
    chosen: list[Choice] = []
    left_out: list[str] = []
    named = dict.fromkeys(name for name in wanted if name != ALL)
    if ALL in wanted:
        for key in registry.protocols():
            try:
                chosen += _choices(key, data, assigned)
            except UserError as error:
                if key in named:
                    raise
                left_out.append(f"{key} is left out: {error}")
    for name in named:
        if ALL not in wanted or ":" in name:
            chosen += _choices(name, data, assigned)
    order = {key: place for place, key in enumerate(named)}
    if ALL not in wanted:
        chosen.sort(key=lambda choice: order[_name(choice)])
    return chosen, tuple(left_out)


def _name(choice: Choice) -> str:
    preset = choice.preset.partition("[")[0]
    return f"{choice.cls.key}:{preset}" if preset else choice.cls.key


def _choices(name: str, data: Sequence[Dataset], assigned: Assignments) -> Iterator[Choice]:
    key, colon, preset = name.partition(":")
    cls = registry.find_protocol(key)
    if colon and preset not in cls.presets:
        if not cls.presets:
            raise UserError(f"{key} has no official recipes to choose from; write --protocol {key}")
        raise unknown(f"official recipe of {key}", preset, cls.presets)
    given = assigned.of(name)
    recipe = dict(cls.presets[preset].fields) if colon else {}
    fields = settings.parse_settings(name, cls, {**recipe, **given})
    if given and colon:
        preset += f"[{','.join(f'{k}={settings.show(v)}' for k, v in sorted(given.items()))}]"
    _check_installed(cls)
    protocol = cls(**settings.arguments(cls, fields))
    fitting = [dataset for dataset in data if dataset.task == cls.task]
    if not fitting:
        raise UserError(
            f"{key} is evaluated on {cls.task} data and none is given; add some, as in "
            f"--data {data[0].spec},{EXAMPLES[cls.task]}"
        )
    refusals, suited = [], []
    for dataset in fitting:
        try:
            protocol.check(dataset)
            suited.append(dataset)
        except UserError as error:
            refusals.append(error)
    if not suited:
        raise refusals[0]
    found = [Choice(cls, preset, fields, dataset, protocol.built_on(dataset)) for dataset in suited]
    return iter(found)


def _check_installed(cls: type[Protocol]) -> None:
    if cls.requires is None:
        return
    modules, extra = cls.requires
    if missing := list(_missing(modules)):
        raise UserError(
            f"{cls.key} needs {', '.join(missing)}, not installed here; pip install 'mimbench[{extra}]' "
            "(with -c constraints.txt for the versions that were tested)"
        )


def _missing(modules: Iterable[str]) -> Iterator[str]:
    return (module for module in modules if find_spec(module) is None)
