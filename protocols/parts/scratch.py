"""Where an evaluation keeps what it goes on from."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@contextmanager
def scratch(given: Path | None, fabric: Fabric) -> Iterator[Path]:
    """``given``, or a folder of the first process that goes away, for evaluations that nobody resumes."""
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="mimbench-") as own:
        yield Path(fabric.broadcast(own))
