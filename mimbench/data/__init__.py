"""Images: where they come from, how they are divided, prepared, transformed and handed out.

``open_dataset`` needs no torch; what hands out tensors is imported when first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mimbench.data.dataset import Dataset, Split, open_dataset
from mimbench.data.sources.base import DataDefaults
from mimbench.data.targets import Boxes

if TYPE_CHECKING:
    from mimbench.data.checking import CheckReport, check
    from mimbench.data.loading import Batch, evaluation_batches, picked_batches, training_batches
    from mimbench.data.transforms import EvalTransform, TrainTransform

_LAZY = {
    "CheckReport": "checking",
    "check": "checking",
    "Batch": "loading",
    "evaluation_batches": "loading",
    "picked_batches": "loading",
    "training_batches": "loading",
    "EvalTransform": "transforms",
    "TrainTransform": "transforms",
}

__all__ = [
    "Batch",
    "Boxes",
    "CheckReport",
    "DataDefaults",
    "Dataset",
    "EvalTransform",
    "Split",
    "TrainTransform",
    "check",
    "evaluation_batches",
    "open_dataset",
    "picked_batches",
    "training_batches",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value
    return value
