"""The catalogue: every released file that mimbench knows, and what is told of it. Imports no torch."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import yaml
from pydantic import ValidationError

from mimbench.data.cache import cache_folder
from mimbench.errors import UserError, unknown
from mimbench.weights.entry import Entry

FOLDER = "catalogue"  # of the package ``method_zoo.weights``; one YAML file a method, a list of entries


@cache
def entries() -> dict[str, Entry]:
    """All entries by name, methods in the order of the alphabet, a method's in the order of its file."""
    folder = files("method_zoo.weights") / FOLDER
    found: dict[str, Entry] = {}
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.name.endswith(".yaml"):
            for entry in read(path):
                if entry.name in found:
                    raise UserError(f"two entries of the catalogue are called {entry.name}; rename one")
                found[entry.name] = entry
    return found


def read(path: Traversable) -> list[Entry]:
    """The entries of one file. Raises UserError for what is no entry, naming it."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        listed = content if isinstance(content, list) else [content]
        return [Entry.model_validate(item) for item in listed]
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path.name}: {where}: {first['msg']}; correct the entry") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path.name} is not valid YAML: {error}; correct it") from error


def entries_of(method: str) -> list[Entry]:
    """The entries of one method, in order."""
    return [entry for entry in entries().values() if entry.method == method]


def find_entry(name: str) -> Entry:
    """The entry called ``name``; raises UnknownNameError with near matches."""
    if name not in entries():
        method = name.partition("@")[0]
        if same := [entry.name for entry in entries_of(method)]:
            raise unknown("released file", name, same, "mimbench weights list lists all")
        methods = {entry.method for entry in entries().values()}
        raise unknown("method with released weights", method, methods, "mimbench weights list lists all")
    return entries()[name]


def converted_path(entry: Entry) -> Path:
    """Where the converted file of an entry is kept."""
    return cache_folder("encoders") / f"{entry.name}.safetensors"
