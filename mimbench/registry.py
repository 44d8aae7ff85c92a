"""Finds methods, protocols, datasets and backbones by name; a new one is a new file, no list to edit.

The project's own live one a file in ``method_zoo`` and ``protocols``; installed packages add theirs
through the entry-point groups below. A name with two owners is an error that names both.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimbench.errors import UserError, unknown

if TYPE_CHECKING:
    from torch import nn

    from mimbench.data.sources import Listing
    from mimbench.method import Method
    from mimbench.protocol import Protocol
    from mimbench.weights.origin import Origin

GROUPS = {
    "method": "mimbench.methods",
    "protocol": "mimbench.protocols",
    "dataset": "mimbench.datasets",
    "backbone": "mimbench.backbones",
}


def _package_classes(package: str, base: type) -> list[Any]:
    """Subclasses of ``base`` defined in the modules right inside ``package``."""
    found = []
    for module_info in pkgutil.iter_modules(importlib.import_module(package).__path__):
        if module_info.ispkg:
            continue
        module = importlib.import_module(f"{package}.{module_info.name}")
        found += [
            value
            for value in vars(module).values()
            if inspect.isclass(value) and issubclass(value, base) and value.__module__ == module.__name__
        ]
    return found


def _add(table: dict[str, Any], kind: str, key: str, value: Any) -> None:
    owner = table.setdefault(key, value)
    if owner is not value:
        places = " and ".join(f"{v.__module__}.{v.__qualname__}" for v in (owner, value))
        raise UserError(f"two {kind}s are called {key!r}: {places}; uninstall or rename one")


def _entry_points(kind: str) -> list[tuple[str, Any]]:
    loaded = []
    for point in entry_points(group=GROUPS[kind]):
        try:
            loaded.append((point.name, point.load()))
        except Exception as error:  # a broken plug-in must be named, not hidden behind "unknown method"
            raise UserError(
                f"the installed {kind} {point.name!r} ({point.value}) cannot be imported: {error}; "
                "fix or uninstall its package"
            ) from error
    return loaded


_WANTED = {
    "method": "a subclass of mimbench.method.Method with a card",
    "protocol": "a subclass of mimbench.protocol.Protocol with a key",
    "dataset": "a function of the text after the colon",
    "backbone": "a function of (name, image_size, **options)",
}


def _expect(condition: bool, kind: str, name: str, value: Any) -> None:
    """Name the plug-in that registered something else than its group holds."""
    if not condition:
        raise UserError(
            f"the installed {kind} {name!r} is {value!r}, expected {_WANTED[kind]}; "
            "fix or uninstall its package"
        )


def _plugin_classes(kind: str, base: type, named_by: str) -> list[Any]:
    """Classes that installed packages add, each checked to be of ``base`` with a name of its own."""
    points = _entry_points(kind)
    for name, cls in points:
        _expect(inspect.isclass(cls) and issubclass(cls, base) and named_by in vars(cls), kind, name, cls)
    return [cls for _, cls in points]


@cache
def methods() -> dict[str, type[Method]]:
    """All methods by key."""
    from mimbench.method import Method

    table: dict[str, type[Method]] = {}
    for cls in _package_classes("method_zoo", Method):
        if "card" in vars(cls):
            _add(table, "method", cls.card.key, cls)
    for cls in _plugin_classes("method", Method, "card"):
        _add(table, "method", cls.card.key, cls)
    return dict(sorted(table.items()))


@cache
def protocols() -> dict[str, type[Protocol]]:
    """All protocols by key."""
    from mimbench.protocol import Protocol

    table: dict[str, type[Protocol]] = {}
    for cls in _package_classes("protocols", Protocol):
        if "key" in vars(cls):
            _add(table, "protocol", cls.key, cls)
    for cls in _plugin_classes("protocol", Protocol, "key"):
        _add(table, "protocol", cls.key, cls)
    return dict(sorted(table.items()))


@cache
def datasets() -> dict[str, Callable[..., Listing]]:
    """All sources of images by the prefix of their spec, each a function of what follows the colon."""
    from mimbench.data.sources import SOURCES

    table: dict[str, Callable[..., Listing]] = dict(SOURCES)
    for name, source in _entry_points("dataset"):
        _expect(callable(source), "dataset", name, source)
        _add(table, "dataset", name, source)
    return dict(sorted(table.items()))


def find_method(key: str) -> type[Method]:
    """The method called ``key``; raises UnknownNameError with near matches."""
    if key not in methods():
        raise unknown("method", key, methods(), "mimbench methods lists all")
    return methods()[key]


def find_protocol(key: str) -> type[Protocol]:
    """The protocol called ``key``; raises UnknownNameError with near matches."""
    if key not in protocols():
        raise unknown("protocol", key, protocols(), "mimbench protocols lists all")
    return protocols()[key]


def build_backbone(name: str, image_size: int, **options: Any) -> nn.Module:
    """A freshly initialised backbone such as ``vit_tiny_patch16`` for square images of ``image_size``.

    Raises UserError for an unknown name or a patch size that does not divide the image.
    """
    from method_zoo.backbones import build

    table: dict[str, Any] = {}
    for pattern, builder in _backbones():
        if pattern.fullmatch(name):
            _add(table, "backbone", name, builder)
    return table.get(name, build)(name, image_size, **options)  # the zoo's raises, with near matches


@cache
def _backbones() -> list[tuple[re.Pattern[str], Callable[..., nn.Module]]]:
    """Builders of backbones with the pattern of their names: the zoo's own and the plug-ins'."""
    from method_zoo.backbones import NAMES, build

    found: list[tuple[re.Pattern[str], Callable[..., nn.Module]]] = [(re.compile(NAMES), build)]
    for name, builder in _entry_points("backbone"):
        _expect(callable(builder), "backbone", name, builder)
        try:
            found.append((re.compile(name), builder))
        except re.error as error:
            raise UserError(
                f"the installed backbone {name!r} is not a pattern of names ({error}); "
                "fix or uninstall its package"
            ) from error
    return found


@cache
def origins() -> dict[str, Origin]:
    """All families of released files by key: the modules of ``method_zoo.weights``."""
    package = "method_zoo.weights"
    table: dict[str, Origin] = {}
    for module_info in pkgutil.iter_modules(importlib.import_module(package).__path__):
        module = importlib.import_module(f"{package}.{module_info.name}")
        if hasattr(module, "ORIGIN"):
            _add(table, "origin", module.ORIGIN.key, module.ORIGIN)
    return dict(sorted(table.items()))


def find_origin(key: str) -> Origin:
    """The origin called ``key``; raises UnknownNameError with near matches."""
    if key not in origins():
        raise unknown("family of released files", key, origins())
    return origins()[key]


def load_tokenizer(path: Path) -> nn.Module:
    """A frozen tokenizer (``mimbench.method.Tokenizer``) from OpenAI's dVAE file or a product of ours."""
    from method_zoo.parts.tokenizers import load_tokenizer as load

    return load(path)


def load_teacher(path: Path, grid: tuple[int, int]) -> nn.Module:
    """A frozen teacher (``mimbench.method.Teacher``) from an ``encoder.safetensors`` of ours."""
    from method_zoo.parts.teachers import load_teacher as load

    return load(path, grid)


def as_teacher(method: Method) -> nn.Module:
    """The encoder of a method at hand as a frozen teacher; UserError where it is no transformer."""
    from method_zoo.parts.teachers import as_teacher as make

    return make(method)
