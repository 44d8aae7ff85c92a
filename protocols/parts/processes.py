"""The processes that work on one evaluation, and where they compute."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from mimbench.processes import on_first

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from mimbench.encoder import Encoder

T = TypeVar("T")


class Team:
    """The processes that call a protocol's ``evaluate`` together; without ``together`` this one alone.

    device: where the encoder computes; it is put there.
    """

    def __init__(self, fabric: Fabric | None, encoder: Encoder, together: bool):
        self._fabric = fabric
        self.world = fabric.world_size if fabric is not None and together else 1
        self.rank = fabric.global_rank if fabric is not None and self.world > 1 else 0
        self.device = fabric.device if fabric is not None else encoder.mean.device
        encoder.to(self.device)

    @property
    def computing(self) -> torch.device:
        """Where what is trained on frozen features lies: not on Apple's devices, which have no float64."""
        return torch.device("cpu") if self.device.type == "mps" else self.device

    @property
    def alone(self) -> bool:
        return self.world == 1

    def autocast(self) -> AbstractContextManager:
        """The run's precision, for the frozen encoder."""
        return self._fabric.autocast() if self._fabric is not None else nullcontext()

    def sum_(self, tensor: Tensor) -> Tensor:
        """The sum over processes, in place."""
        if not self.alone:
            torch.distributed.all_reduce(tensor)
        return tensor

    def on_first(self, work: Callable[[], T]) -> T:
        """Do ``work`` on the first process; its result or its UserError comes out of all of them."""
        if self.alone:
            return work()
        assert self._fabric is not None
        return on_first(self._fabric, work)
