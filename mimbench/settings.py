"""Settings of methods and protocols: read off their signatures, checked before any work starts.

A method's settings are the keyword-only arguments of its ``__init__``, a protocol's are its dataclass
fields. Both become a pydantic model, so annotations are the one place where types and ranges stand.
Imports no torch.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic.fields import FieldInfo

from mimbench.errors import UserError, unknown


def is_provided(name: str) -> bool:
    """Whether the harness gives this keyword argument of a method, and not the user as a setting."""
    return name == "num_classes" or name.endswith(("tokenizer", "teacher"))


class Wanted(NamedTuple):
    """What one item of ``--methods`` asks for: a key and the settings written in its brackets."""

    key: str
    given: dict[str, Any]


def _parameters(cls: type) -> dict[str, tuple[Any, Any]]:
    """Settings of a method or protocol class: name -> (annotation, default)."""
    if dataclasses.is_dataclass(cls):
        fields = {field.name: field for field in dataclasses.fields(cls)}
        annotations: dict[str, Any] = {}
        for owner in reversed(cls.__mro__):
            own = {k: v for k, v in vars(owner).get("__annotations__", {}).items() if k in fields}
            annotations |= _resolve(own, vars(sys.modules[owner.__module__]))
        found = {name: (annotations[name], _field_default(field)) for name, field in fields.items()}
    else:
        init = inspect.unwrap(cls.__init__)  # type: ignore[misc]
        keyword_only = {
            name: parameter
            for name, parameter in inspect.signature(init).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY and not is_provided(name)
        }
        annotations = _resolve({n: p.annotation for n, p in keyword_only.items()}, init.__globals__)
        found = {name: (annotations[name], p.default) for name, p in keyword_only.items()}
    for name, pair in found.items():
        for value, what in zip(pair, ("annotation", "default"), strict=True):
            if value is inspect.Parameter.empty:
                raise UserError(f"{_path(cls)}: the setting {name!r} has no {what}; add one")
    return found


def _field_default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _resolve(annotations: Mapping[str, Any], names: Mapping[str, Any]) -> dict[str, Any]:
    """Annotations written as text, evaluated where they were written; those of other arguments are not
    looked at, so what is imported for type checkers only does not matter."""
    written = {k: v for k, v in annotations.items() if v is not inspect.Parameter.empty}
    holder = types.SimpleNamespace(__annotations__=written)
    resolved = typing.get_type_hints(holder, globalns=dict(names), include_extras=True)
    return {k: resolved.get(k, inspect.Parameter.empty) for k in annotations}


@cache
def model_of(cls: type) -> type[BaseModel]:
    """The pydantic model of the settings of a method or protocol class."""
    config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False, protected_namespaces=())
    try:
        fields: dict[str, Any] = dict(_parameters(cls))
        return create_model(cls.__name__, __config__=config, **fields)
    except (TypeError, NameError) as error:
        raise UserError(
            f"the settings of {_path(cls)} cannot be read: {error}; fix its annotations"
        ) from error


def defaults(cls: type) -> dict[str, Any]:
    """All settings of a class at their defaults, as JSON data."""
    return model_of(cls)().model_dump(mode="json")


def parse_settings(owner: str, cls: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of ``cls`` as JSON data: those ``given`` checked, the others at their defaults.

    owner: the name users know the class by, for messages.
    Raises UserError for an unknown name or a value that is not allowed.
    """
    model = model_of(cls)
    for name in given:
        if name not in model.model_fields:
            if not model.model_fields:
                raise UserError(f"{owner} has no settings; leave out {name!r}")
            raise unknown(f"setting of {owner}", name, model.model_fields)
    for name, value in given.items():
        if isinstance(value, bool) and not _takes_bool(model.model_fields[name].annotation):
            raise UserError(f"{owner}.{name}={show(value)}: must not be true or false{_default(cls, name)}")
    try:
        return model.model_validate(dict(given)).model_dump(mode="json")
    except ValidationError as error:
        first = error.errors()[0]
        name, inner = str(first["loc"][0]), "".join(f"[{i}]" for i in first["loc"][1:] if isinstance(i, int))
        raise UserError(
            f"{owner}.{name}={show(given[name])}: {inner + ' ' if inner else ''}{reason(first['msg'])}"
            f"{_default(cls, name)}"
        ) from error


def arguments(cls: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments for ``cls`` out of settings that ``parse_settings`` gave."""
    parsed = model_of(cls).model_validate(dict(settings))
    return {name: getattr(parsed, name) for name in type(parsed).model_fields}


def ranges(cls: type) -> list[tuple[str, str, str]]:
    """(name, default, what is allowed) of each setting, as text for people."""
    at_default = defaults(cls)
    return [
        (name, show(at_default[name]), _allowed(info)) for name, info in model_of(cls).model_fields.items()
    ]


def label(key: str, cls: type, settings: Mapping[str, Any], more: Mapping[str, Any] | None = None) -> str:
    """``mae[mask_ratio=0.9]``: a variant's name, saying only what differs from the defaults, sorted.

    more: further things that set the variant apart, such as settings of its tokenizer.
    """
    at_default = defaults(cls)
    changed = {k: v for k, v in settings.items() if v != at_default[k]} | dict(more or {})
    inside = ",".join(f"{k}={show(v)}" for k, v in sorted(changed.items()))
    return f"{key}[{inside}]" if inside else key


def show(value: Any) -> str:
    """A value as it would be typed: ``true``, ``0.5``, ``[1,2]``, ``null``."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:.12g}"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}: {show(v)}" for k, v in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ",".join(map(show, value)) + "]"
    return str(value)


def reason(message: str) -> str:
    """Pydantic's message as the second half of a sentence: "must be less than 1"."""
    for start, ours in (("Input should be", "must be"), ("Value error, ", ""), ("Assertion failed, ", "")):
        if message.startswith(start):
            return ours + message.removeprefix(start)
    return message[:1].lower() + message[1:]


def parse_value(text: str) -> Any:
    """A typed value: ``0.9``, ``true``, ``[1,2]``, ``null`` as in YAML; other text stays text."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def parse_assignment(text: str) -> tuple[str, Any]:
    """``mask_ratio=0.9`` -> ("mask_ratio", 0.9)."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip() or not value.strip():
        raise UserError(f"{text!r} is not a setting; write NAME=VALUE, as in mask_ratio=0.9")
    return name.strip(), parse_value(value.strip())


def parse_methods(text: str) -> list[Wanted]:
    """``mae[mask_ratio=0.5,norm_pix=false],beit`` -> what each item asks for."""
    return [_parse_method(item) for item in split(text)]


def _parse_method(item: str) -> Wanted:
    match = re.fullmatch(r"([^\[\]]+?)\s*(?:\[(.*)\])?", item, flags=re.DOTALL)
    if not match:
        raise UserError(f"cannot read the method {item!r}; write NAME or NAME[setting=value,other=value]")
    given: dict[str, Any] = {}
    for assignment in split(match[2] or ""):
        name, value = parse_assignment(assignment)
        if name in given:
            raise UserError(f"{item!r} sets {name} twice; leave one out")
        given[name] = value
    return Wanted(match[1], given)


def split(text: str) -> list[str]:
    """Split at commas that stand outside of brackets; empty items fall away."""
    items, depth = [""], 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        if depth < 0:
            break
        if character == "," and depth == 0:
            items.append("")
        else:
            items[-1] += character
    if depth:
        raise UserError(f"brackets do not match in {text!r}; write NAME[setting=value]")
    return [item.strip() for item in items if item.strip()]


def _takes_bool(annotation: Any) -> bool:
    return annotation in (bool, Any) or any(map(_takes_bool, typing.get_args(annotation)))


def _default(cls: type, name: str) -> str:
    return f" (default {show(defaults(cls)[name])})"


_BOUNDS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤", "multiple_of": "a multiple of"}


def _allowed(info: FieldInfo) -> str:
    return _type_text(info.annotation) + _bounds(info)


def _bounds(info: FieldInfo) -> str:
    bounds = [
        f"{sign} {getattr(bound, name):g}"
        for bound in info.metadata
        for name, sign in _BOUNDS.items()
        if getattr(bound, name, None) is not None
    ]
    return " " + ", ".join(bounds) if bounds else ""


def _type_text(annotation: Any) -> str:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " | ".join(map(show, inner))
    if origin is typing.Annotated:
        return _type_text(inner[0]) + "".join(_bounds(i) for i in inner[1:] if isinstance(i, FieldInfo))
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(_type_text, inner))
    if origin in (tuple, list):
        return f"list of {_type_text(inner[0])}" if inner else "list"
    if annotation is type(None):
        return "null"
    names = {float: "number", int: "whole number", str: "text", bool: "true | false"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))
