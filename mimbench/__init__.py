"""mimbench: compares masked-image-modelling pre-training methods under identical settings.

mimbench.run("mae,beit,hpm", protocol="linprobe").table
mimbench.load_encoder("mae"), mimbench.load_encoder("mae@vit_base")
mimbench.leaderboard("mimbench-results")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mimbench.api import (
        Result,
        leaderboard,
        load_encoder,
        published_figures,
        released_weights,
        run,
    )
    from mimbench.errors import UserError

__version__ = "0.1.0"
__all__ = [
    "Result",
    "UserError",
    "__version__",
    "leaderboard",
    "load_encoder",
    "published_figures",
    "released_weights",
    "run",
]

_LAZY = {
    "Result": "mimbench.api",
    "UserError": "mimbench.errors",
    "leaderboard": "mimbench.api",
    "load_encoder": "mimbench.api",
    "published_figures": "mimbench.api",
    "released_weights": "mimbench.api",
    "run": "mimbench.api",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
