"""Where images come from. ``SOURCES`` maps a spec's prefix to a function of what follows the colon.

An installed package adds its own through the entry-point group ``mimbench.datasets``: the entry's name is
the prefix, its object a function ``(argument: str) -> Listing``; a second parameter, if it has one, is a
folder (Path) in which it may keep what it would otherwise have to read again.
"""

from __future__ import annotations

from collections.abc import Callable

from mimbench.data.sources.ade20k import ade20k
from mimbench.data.sources.base import Annotations, DataDefaults, Listing, Part, Units
from mimbench.data.sources.cifar10 import cifar10
from mimbench.data.sources.coco import coco
from mimbench.data.sources.digits import digits
from mimbench.data.sources.hf import hf
from mimbench.data.sources.imagefolder import imagefolder
from mimbench.data.sources.imagenet import imagenet
from mimbench.data.sources.parquet import parquet

SOURCES: dict[str, Callable[..., Listing]] = {
    "ade20k": ade20k,
    "cifar10": cifar10,
    "coco": coco,
    "digits": digits,
    "hf": hf,
    "imagefolder": imagefolder,
    "imagenet": imagenet,
    "parquet": parquet,
}

__all__ = ["SOURCES", "Annotations", "DataDefaults", "Listing", "Part", "Units"]
