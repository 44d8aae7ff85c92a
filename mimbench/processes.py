"""What several processes of one launch do together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric

from mimbench.errors import UserError

T = TypeVar("T")


def on_first(fabric: Fabric, work: Callable[[], T]) -> T:
    """Do ``work`` on the first process; its result or its UserError comes out of all of them."""
    result, mistake = None, None
    if fabric.is_global_zero:
        try:
            result = work()
        except UserError as error:
            if fabric.world_size == 1:
                raise
            mistake = str(error)
    result, mistake = fabric.broadcast((result, mistake))
    if mistake is not None:
        raise UserError(mistake)
    return result  # type: ignore[return-value]


def gathered(fabric: Fabric | None, mine: T) -> list[T]:
    """What each process has, on all of them, in their order. Anything that pickles."""
    if fabric is None or fabric.world_size == 1:
        return [mine]
    parts: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(parts, mine)
    return parts
