"""Which settings of a run are not at their defaults, and of which nobody here can tell."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from mimbench import registry, settings
from mimbench.errors import UnknownNameError
from mimbench.repro.dossier import Changed
from mimbench.request import Request
from mimbench.spec import Record

UNTOLD = ("methods", "data", "out", "about", "set")  # of a request, said elsewhere
RECORDED = ("recipe", "batch_size", "seeds", "skip_broken")  # with a default that hangs on nothing


def changed_settings(found: Iterable[Record]) -> tuple[list[Changed], list[str]]:
    """Settings of methods and fields of protocols that differ from their defaults; remarks where unknown."""
    changed: dict[str, Changed] = {}
    remarks: dict[str, None] = {}
    for record in found:
        content = record.content
        parts = list(_methods(content))
        if record.kind == "evaluate":
            parts.append(
                (
                    "protocol",
                    content["protocol"],
                    content.get("fields", {}),
                    content.get("protocol_version"),
                    content.get("preset", ""),
                )
            )
        for kind, key, values, version, preset in parts:
            cls: Any
            try:
                cls = registry.find_method(key) if kind == "method" else registry.find_protocol(key)
            except UnknownNameError:
                remarks[
                    f"the {kind} {key} is not installed here (a plug-in?): its defaults are unknown; all "
                    f"its settings: {settings.show(values) if values else 'none'}"
                ] = None
                continue
            today = cls.card.version if kind == "method" else cls.version
            if version not in (None, today):
                remarks[
                    f"{key} ran in version {version} and is in version {today} here: the defaults are today's"
                ] = None
            for one in _of(key, cls, values, str(preset or "")):
                changed[one.model_dump_json()] = one
    return list(changed.values()), list(remarks)


Part = tuple[str, str, dict[str, Any], Any, str]  # kind, key, settings, version, preset


def _methods(content: dict[str, Any]) -> Iterator[Part]:
    """A record's method, and what was trained for it."""
    if "released" in content:  # used as it is
        return
    yield "method", content["method"], content.get("settings", {}), content.get("method_version"), ""
    for source in content.get("provided", {}).values():
        if "method" in source:
            yield from _methods(source)


def _of(key: str, cls: type, values: dict[str, Any], preset: str) -> Iterator[Changed]:
    usual = settings.defaults(cls)
    owner = f"{key}:{preset}" if preset else key
    for name, value in values.items():
        if name not in usual:
            yield Changed(owner=owner, name=name, value=value, default="no such setting in this version")
        elif usual[name] != value:
            yield Changed(owner=owner, name=name, value=value, default=usual[name])


def changed_options(options: dict[str, Any], noted: bool) -> list[Changed]:
    """Options of a request that are not at their defaults.

    noted: otherwise it was put together from records, which do not tell what was asked for from what the
    data or the device chose, nor how rows came to be there.
    """
    found = []
    for name, value in options.items():
        if name in UNTOLD or name not in Request.model_fields or not (noted or name in RECORDED):
            continue
        default = Request.model_fields[name].get_default()
        default = list(default) if isinstance(default, tuple) else default
        if default != value:
            shown = "chosen by the data or the device" if default is None or default == "auto" else default
            found.append(Changed(owner="run", name=name, value=value, default=shown))
    return found
