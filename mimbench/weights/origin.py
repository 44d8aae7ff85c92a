"""How the tensors of one family of released files become those of an encoder of ours.

An origin is a module of ``method_zoo.weights`` with an ``ORIGIN``. It says by which names a tensor goes there
and here; what is read and written, and that nothing is left unnamed, is ``mimbench.weights.convert``'s.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Size, Tensor

from mimbench.weights.entry import Entry

Shapes = Mapping[str, Size]  # of a file's tensors, by official name
Rules = Sequence[tuple[str, str]]  # (regular expression of a whole official name, ours as in ``re.sub``)


@dataclass(frozen=True)
class Made:
    """One of our tensors: made ``by`` a function of official ones, in this order."""

    of: tuple[str, ...]
    by: Callable[..., Tensor] = lambda tensor: tensor


@dataclass(frozen=True)
class Conversion:
    """What becomes of every tensor of a file. No name may be left over on either side.

    made: our parameters and buffers. dropped: official names, and why each is not needed. fresh: ours that
    the file lacks, and why they may keep what the module begins with. tables: by official name, tables that
    our module computes (such as sin-cos positions); the file's must equal them to 1e-5.
    """

    made: Mapping[str, Made]
    dropped: Mapping[str, str] = field(default_factory=dict)
    fresh: Mapping[str, str] = field(default_factory=dict)
    tables: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Origin:
    """A family of released files.

    key: its name, that of its module. version: raised whenever the same file would give another encoder.
    summary: what it is, for people. config: the arguments of ``registry.build_backbone`` for an entry.
    convert: what becomes of a file's tensors. containers: keys under which the state dict lies, outermost
    first; of several alternatives the first that is there: ``(("model",), ("state_dict",), ())``.
    """

    key: str
    version: int
    summary: str
    config: Callable[[Entry], dict[str, Any]]
    convert: Callable[[Shapes, Entry], Conversion]
    containers: tuple[tuple[str, ...], ...] = ((),)


def config(entry: Entry, **options: Any) -> dict[str, Any]:
    """The arguments of ``registry.build_backbone``: the origin's ``options``, then the entry's own."""
    return {"name": entry.backbone, "image_size": entry.image_size, **options, **entry.options}


def within(prefix: str, rules: Rules) -> Rules:
    """The rules for names behind a prefix, a regular expression without groups that capture."""
    return [(prefix + pattern, ours) for pattern, ours in rules]


def renamed(
    shapes: Shapes,
    rules: Rules,
    dropped: Mapping[str, str],
    tables: Mapping[str, Tensor] | None = None,
    fresh: Mapping[str, str] | None = None,
) -> Conversion:
    """A conversion that renames. dropped: regular expressions of whole official names, and why.

    Names that nothing matches are left over, which ``convert`` reports.
    """
    made, gone = {}, {}
    for name in shapes:
        if name in (tables or {}):
            continue
        if reason := next((why for pattern, why in dropped.items() if re.fullmatch(pattern, name)), None):
            gone[name] = reason
            continue
        for pattern, ours in rules:
            if match := re.fullmatch(pattern, name):
                made[match.expand(ours)] = Made((name,))
                break
    return Conversion(made, gone, dict(fresh or {}), dict(tables or {}))
