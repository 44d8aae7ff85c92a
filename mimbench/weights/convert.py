"""From a released file to an ``encoder.safetensors`` of ours, tensor by tensor, nothing left unnamed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
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
from mimbench.weights.origin import Conversion

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
    source, way = Path(source), find_origin(origin or entry.origin)
    containers = way.containers if entry.container is None else (entry.container,)
    state = foreign.state_dict(foreign.read(source), containers, source)
    shapes = _Shapes(state.shapes)
    shapes.what = f"{source.name}, read as {entry.name} ({way.key} layout),"
    config = way.config(entry)
    with torch.device("meta"):
        wanted = _wanted(build_backbone(**config))
    conversion = way.convert(shapes, entry)
    _check_names(conversion, shapes, wanted)
    _check_tables(conversion, state, source.name)
    used = tuple(dict.fromkeys(name for made in conversion.made.values() for name in made.of))
    metadata = {
        "backbone_config": config,
        "mean": list(entry.mean),
        "std": list(entry.std),
        "method": entry.method,
        "readout": entry.readout.content(),
        "release": {
            "name": entry.name,
            "data": entry.data,
            "epochs": entry.epochs,
            "external": entry.external,
            "labels": entry.labels,
            "learned_from": entry.learned_from,
            "licence": entry.licence,
            "file": source.name,
            "file_sha256": foreign.sha256(source),
            "origin": way.key,
            "origin_version": way.version,
            "used": list(used),
            "dropped": dict(conversion.dropped),
            "fresh": dict(conversion.fresh),
        },
    }
    make = _maker(conversion, state, wanted, config, source.name)
    sha256 = checkpoint.write_tensors(target, wanted, make, metadata)
    return Converted(target, sha256, used, conversion.dropped, conversion.fresh)


class _Shapes(dict[str, Size]):
    """Shapes of a file's tensors; asked for one that it lacks, it says so as a user's mistake."""

    what: str

    def __missing__(self, name: str) -> Size:
        raise UserError(f"{self.what} lacks {name}; name the entry that it belongs to")


def _check_names(conversion: Conversion, shapes: _Shapes, wanted: Mapping[str, Tensor]) -> None:
    used = {name for made in conversion.made.values() for name in made.of}
    known = used | conversion.dropped.keys() | conversion.tables.keys()
    faults = [
        (names, said)
        for names, said in (
            (sorted(shapes.keys() - known), "has the unexpected"),
            (sorted(known - shapes.keys()), "lacks"),
            (
                sorted(wanted.keys() - conversion.made.keys() - conversion.fresh.keys()),
                "has nothing for the encoder's",
            ),
            (sorted(conversion.made.keys() - wanted.keys()), "has more than the encoder takes:"),
        )
        if names
    ]
    if faults:
        said = " and ".join(f"{said} {listed(names)}" for names, said in faults)
        raise UserError(f"{shapes.what} {said}; name the entry that it belongs to")


def listed(names: Iterable[str]) -> str:
    """The first names of many, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more


def _check_tables(conversion: Conversion, state: Mapping[str, Tensor], what: str) -> None:
    for name, ours in conversion.tables.items():
        theirs = state[name].float()
        if theirs.numel() != ours.numel():
            raise UserError(
                f"{name!r} of {what} has shape {list(theirs.shape)}, expected {list(ours.shape)}; "
                "name the entry that it belongs to"
            )
        apart = (theirs.reshape(ours.shape) - ours).abs().max().item()
        if not apart <= TABLE_TOLERANCE * max(1.0, ours.abs().max().item()):
            raise UserError(
                f"{name!r} of {what} is not the fixed table it is said to be (they part by {apart:.2g}); "
                "if it was trained, give the entry the option positions: learned"
            )


def _wanted(backbone: nn.Module) -> dict[str, Tensor]:
    """Shapes and types of what is written, on the meta device: whole numbers as they are, others float32."""
    return {
        name: tensor.to(torch.float32) if tensor.is_floating_point() else tensor
        for name, tensor in backbone.state_dict().items()
    }


def _maker(
    conversion: Conversion,
    state: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    config: Mapping[str, Any],
    what: str,
) -> Callable[[str], Tensor]:
    """What makes one of our tensors by name; official ones are read for it and let go of afterwards."""
    fresh = {}
    if conversion.fresh:
        built = build_backbone(**config).state_dict()
        fresh = {name: built[name] for name in conversion.fresh}

    def make(name: str) -> Tensor:
        if name in fresh:
            return fresh[name].to(wanted[name].dtype)
        made = conversion.made[name]
        parts = [state[official] for official in made.of]
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
