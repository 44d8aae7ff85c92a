"""From a released file to an ``encoder.safetensors`` of ours, tensor by tensor, nothing left unnamed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Size, Tensor, nn

from mimbench import checkpoint
from mimbench.errors import UserError
from mimbench.registry import build_backbone, find_origin
from mimbench.tensor_files import finite
from mimbench.weights import foreign
from mimbench.weights.entry import Entry
from mimbench.weights.origin import Conversion, Origin

# Between a file's fixed table and the same computed in float64; relative to its largest number from 1 on.
TABLE_TOLERANCE = 1e-5
MOST_NAMES = 8  # in a message


@dataclass(frozen=True)
class Converted:
    """What became of a file.

    used: official names that are in the encoder. dropped, fresh: see ``Conversion``.
    """

    path: Path
    sha256: str
    used: tuple[str, ...]
    dropped: Mapping[str, str]
    fresh: Mapping[str, str]


def convert(source: Path, entry: Entry, target: Path, origin: str = "") -> Converted:
    """Write the encoder in the file ``source``, which is of ``entry``'s layout, to ``target``.

    origin: of the file, where it is not the entry's. Raises UserError for a file of another layout (naming
    what is unexpected and what is missing), for shapes that do not fit and for NaN or infinity in a tensor.
    """
    plan = _plan(Path(source), entry, origin)
    if misnamed := _misnamed(plan):
        said = " and ".join(f"{said} {listed(names)}" for said, names in misnamed.items())
        raise UserError(f"{plan.shapes.what} {said}; name the entry that it belongs to")
    for name in plan.conversion.tables:
        _check_table(plan, name)
    conversion = plan.conversion
    used = tuple(dict.fromkeys(name for made in conversion.made.values() for name in made.of))
    metadata = {
        "backbone_config": plan.config,
        "mean": list(entry.mean),
        "std": list(entry.std),
        "method": entry.method,
        "readout": entry.readout.content(),
        "release": {
            **entry.facts(),
            "image_size": plan.config["image_size"],
            "file": plan.source.name,
            "file_sha256": foreign.sha256(plan.source),
            "origin": plan.way.key,
            "origin_version": plan.way.version,
            "used": list(used),
            "dropped": dict(conversion.dropped),
            "fresh": dict(conversion.fresh),
        },
    }
    sha256 = checkpoint.write_tensors(target, plan.wanted, _maker(plan), metadata)
    return Converted(target, sha256, used, conversion.dropped, conversion.fresh)


def faults(source: Path, entry: Entry, origin: str = "") -> list[str]:
    """All that keeps ``convert`` from converting ``source``, a sentence each; nothing is written.

    Raises UnreadableError for what is no whole file of weights.
    """
    try:
        plan = _plan(Path(source), entry, origin)
    except foreign.UnreadableError:
        raise
    except UserError as error:
        return [str(error)]
    found = [f"it {said} {name}" for said, names in _misnamed(plan).items() for name in names]
    make, conversion = _maker(plan), plan.conversion
    whole = {name for name, made in conversion.made.items() if plan.shapes.keys() >= set(made.of)}
    checks = [partial(_check_table, plan, name) for name in conversion.tables if name in plan.shapes]
    checks += [partial(make, name) for name in plan.wanted if name in whole]
    for check in checks:
        try:
            check()
        except UserError as error:
            found.append(str(error))
    return found


@dataclass(frozen=True)
class _Plan:
    """What would become of a file. wanted: what is written, see ``_wanted``."""

    source: Path
    way: Origin
    state: Mapping[str, Tensor]
    shapes: _Shapes
    config: dict[str, Any]
    wanted: Mapping[str, Tensor]
    conversion: Conversion


def _plan(source: Path, entry: Entry, origin: str) -> _Plan:
    way = find_origin(origin or entry.origin)
    containers = way.containers if entry.container is None else (entry.container,)
    state = foreign.state_dict(foreign.read(source), containers, source)
    shapes = _Shapes(state.shapes)
    shapes.what = f"{source.name}, read as {entry.name} ({way.key} layout),"
    config = way.config(entry)
    with torch.device("meta"):
        wanted = _wanted(build_backbone(**config))
    return _Plan(source, way, state, shapes, config, wanted, way.convert(shapes, entry))


class _Shapes(dict[str, Size]):
    """Shapes of a file's tensors; asked for one that it lacks, it says so as a user's mistake."""

    what: str

    def __missing__(self, name: str) -> Size:
        raise UserError(f"{self.what} lacks {name}; name the entry that it belongs to")


def _misnamed(plan: _Plan) -> dict[str, list[str]]:
    """Names that one side has and the other does not, by what is said of them."""
    conversion, wanted, there = plan.conversion, plan.wanted.keys(), plan.shapes.keys()
    used = {name for made in conversion.made.values() for name in made.of}
    known = used | conversion.dropped.keys() | conversion.tables.keys()
    found = {
        "has the unexpected": there - known,
        "lacks": known - there,
        "has nothing for the encoder's": wanted - conversion.made.keys() - conversion.fresh.keys(),
        "has more than the encoder takes:": conversion.made.keys() - wanted,
    }
    return {said: sorted(names) for said, names in found.items() if names}


def listed(names: Iterable[str]) -> str:
    """The first names of many, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more


def _check_table(plan: _Plan, name: str) -> None:
    theirs, ours = plan.state[name].float(), plan.conversion.tables[name]
    what = f"{name!r} of {plan.source.name}"
    if theirs.numel() != ours.numel():
        raise UserError(
            f"{what} has shape {list(theirs.shape)}, expected {list(ours.shape)}; "
            "name the entry that it belongs to"
        )
    apart = (theirs.reshape(ours.shape) - ours).abs().max().item()
    if not apart <= TABLE_TOLERANCE * max(1.0, ours.abs().max().item()):
        raise UserError(
            f"{what} is not the fixed table it is said to be (they part by {apart:.2g}); "
            "if it was trained, give the entry the option positions: learned"
        )


def _wanted(backbone: nn.Module) -> dict[str, Tensor]:
    """Shapes and types of what is written, on the meta device: whole numbers as they are, others float32."""
    return {
        name: tensor.to(torch.float32) if tensor.is_floating_point() else tensor
        for name, tensor in backbone.state_dict().items()
    }


def _maker(plan: _Plan) -> Callable[[str], Tensor]:
    """What makes one of our tensors by name; official ones are read for it and let go of afterwards."""
    conversion, wanted, what = plan.conversion, plan.wanted, plan.source.name
    fresh = {}
    if conversion.fresh:
        built = build_backbone(**plan.config).state_dict()
        fresh = {name: built[name] for name in conversion.fresh}

    def make(name: str) -> Tensor:
        if name in fresh:
            return fresh[name].to(wanted[name].dtype)
        made = conversion.made[name]
        parts = [plan.state[official] for official in made.of]
        for official, part in zip(made.of, parts, strict=True):
            if not finite(part):
                raise UserError(f"tensor {official!r} of {what} holds NaN or infinity; it is not usable")
        tensor = made.by(*parts)
        if tensor.shape != wanted[name].shape:
            raise UserError(
                f"{' + '.join(made.of)} of {what} gives the shape {list(tensor.shape)} for the encoder's "
                f"{name}, expected {list(wanted[name].shape)}; name the entry of that architecture"
            )
        return tensor.to(wanted[name].dtype)

    return make
