"""What a table reads of a record: one row of ``board.load``."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from mimbench.errors import UserError
from mimbench.report.cards import MethodCard
from mimbench.report.costs import NAN, amounts, device, devices
from mimbench.report.text import plain
from mimbench.spec import External, Record, Role, Setting, canonical
from mimbench.weights.release import Release


class _Data(BaseModel):
    """A data set that was evaluated on."""

    model_config = ConfigDict(extra="ignore")

    name: str
    fingerprint: str


class _Content(BaseModel):
    """What a table reads of a record's content."""

    model_config = ConfigDict(extra="ignore")

    method: str
    variant: str = ""
    settings: dict[str, Any] = {}
    method_version: int = 0
    role: Role = "method"
    provided: dict[str, dict[str, Any]] = {}  # tokenizers, teachers: content of the trained, sha256 of given
    sources: str = ""  # the same for people
    recipe: dict[str, Any] | None = None
    external: External = "none"
    parity: str = ""
    seed: int = 0
    setting: Setting
    protocol: str = ""
    protocol_version: int = 0
    preset: str = ""  # name of an official recipe
    fields: dict[str, Any] = {}
    built_on: dict[str, Any] = {}  # see ``Protocol.built_on``
    data: _Data | None = None  # None: the setting's


class _Facts(BaseModel):
    """What a table reads of a record's facts."""

    model_config = ConfigDict(extra="ignore")

    metric: str = ""
    summary: str = ""
    unit: Literal["share", "number"] = "share"
    ranked: bool = True
    flags: list[str] = []
    card: MethodCard | None = None  # of a pre-training's method; records of earlier versions have none
    release: Release | None = None  # of weights that were trained elsewhere


def entry(record: Record, file: str) -> dict[str, Any]:
    """The row of a record; raises UserError, naming its ``file``, when it is damaged."""
    try:
        content = _Content.model_validate(record.content)
        facts = _Facts.model_validate({k: v for k, v in record.facts.items() if v is not None})
    except ValidationError as error:
        first = error.errors()[0]
        part = "content" if error.title == "_Content" else "facts"
        raise UserError(
            f"the record {file} is damaged ({part}.{'.'.join(map(str, first['loc']))}: "
            f"{first['msg']}); move it away and run the same command again to redo its job"
        ) from error
    data = content.data
    if data is not None and data.fingerprint == content.setting.fingerprint:
        data = None
    release = facts.release
    metric = facts.metric or next(iter(record.metrics), "")
    return {
        "record": record.id,
        "file": file,
        "kind": record.kind,
        "status": record.status,
        "error": record.error or "",
        "name": record.name,
        "method": content.method,
        "variant": content.variant or content.method,
        "versions": tuple(_versions(record.content)),
        "recipe": content.recipe or {},
        "content": record.content,
        "role": content.role,
        "external": release.external if release else content.external,
        "sources": release.learned_from if release else content.sources,
        "release": release,
        "parity": content.parity,
        "settings": canonical(content.settings),
        "seed": content.seed,
        "setting": canonical(content.setting.content()),
        "identity": canonical(content.setting.identity()),
        "protocol": content.protocol,
        "protocol_version": content.protocol_version,
        "preset": content.preset,
        "fields": canonical(content.fields | content.built_on),
        "tested_on": data.fingerprint if data else "",
        "tested_on_name": data.name if data else "",
        "summary": facts.summary,
        **_choice(record.selection),
        "needs": canonical(record.needs),
        "metric": metric,
        "unit": facts.unit,
        "ranked": facts.ranked,
        "flags": tuple(facts.flags),
        "card": facts.card,
        "value": record.metrics.get(metric, NAN),
        "metrics": record.metrics,
        "outcomes": record.outcomes,
        "curve": record.curve,
        "device": device(record.cost),
        "devices": devices(record.cost),
        "epochs": _epochs(content.setting, record),
        "finished": record.finished,
        **{f"cost_{key}": amount for key, amount in amounts(record.cost).items()},
    }


@lru_cache(maxsize=4096)
def setting_of(content: str) -> Setting:
    """The setting of an entry."""
    return Setting.model_validate_json(content)


@lru_cache(maxsize=4096)
def without(content: str, free: tuple[str, ...]) -> str:
    """What decides the results of an entry's setting, but for the fields ``free``; canonical JSON."""
    identity = setting_of(content).identity()
    kept = {name: value for name, value in identity.items() if name not in free}
    # Whatever rows may differ in: what is trained here and what others trained have no setting in common.
    return canonical({**kept, "released": True} if setting_of(content).released else kept)


def _choice(selection: dict[str, Any]) -> dict[str, Any]:
    """What was chosen, out of how many, and whether at the edge of what was tried."""
    candidates, place = selection.get("candidates"), selection.get("chosen")
    chosen = ""
    if isinstance(candidates, list) and isinstance(place, int) and 0 <= place < len(candidates):
        own = dict(candidates[place])
        chosen = plain({k: v for k, v in own.items() if not k.startswith(("validation_", "test_"))})
    return {
        "candidates": len(candidates or ()),
        "chosen": chosen,
        "edges": tuple(map(str, selection.get("edges", ()))),
    }


def _epochs(setting: Setting, record: Record) -> float:
    """Passes over its training images in its own pre-training; NaN where the record does not tell."""
    release, images = record.facts.get("release"), record.cost.get("images")
    if release:
        return release.get("epochs") or NAN
    if not images:
        return NAN if images is None else 0.0
    if setting.budget is not None and setting.budget.unit == "epochs":
        return setting.budget.amount
    own = record.data.get("fingerprint") == setting.fingerprint
    size = record.data.get("sizes", {}).get("train") if own else None
    return images / size if size else NAN


def _versions(content: dict[str, Any]) -> Iterator[int]:
    """The method's version and those of what was trained for it: either changes its results."""
    yield content.get("method_version", 0)
    for _, source in sorted(content.get("provided", {}).items()):
        if "method_version" in source:
            yield from _versions(source)
