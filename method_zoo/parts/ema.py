"""A teacher that is the moving average of its student."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Literal

import torch
from torch import nn

from method_zoo.parts.frozen import Frozen


class MovingAverage(Frozen):
    """Exponential moving average of networks: ``average["encoder"]`` is a network like its original.

    Starts as a copy. Held in the precision of the original's parameters, which under mixed precision is
    float32. Buffers are copied, not averaged: counters and fixed tables have no mean. For statistics of
    batch norms that have one, see ``update``.
    """

    def __init__(self, **networks: nn.Module):
        super().__init__(**{name: deepcopy(network) for name, network in networks.items()})

    @torch.no_grad()
    def update(self, momentum: float, *, average_buffers: bool = False, **networks: nn.Module) -> None:
        """average = momentum · average + (1 - momentum) · student, for the networks given at the start.

        average_buffers: treat buffers of floating-point numbers the same way.
        """
        if networks.keys() != self.networks.keys():
            raise ValueError(f"the average is over {sorted(self.networks)}, got {sorted(networks)}")
        for name, student in networks.items():
            average = self.networks[name]
            for mean, value in zip(average.parameters(), student.parameters(), strict=True):
                mean.lerp_(value, 1 - momentum)
            for held, value in zip(average.buffers(), student.buffers(), strict=True):
                if average_buffers and held.is_floating_point():
                    held.lerp_(value, 1 - momentum)
                else:
                    held.copy_(value)


HandOn = Literal["average", "student"]


class HandsOnAverage:
    """For methods whose authors evaluate the moving average, ``self.teacher["encoder"]``, not the student.

    ``hand_on`` says which of the two is handed on; the method's setting of that name.
    """

    hand_on: HandOn
    teacher: MovingAverage
    encoder: nn.Module

    @property
    def product(self) -> nn.Module:
        """The encoder that is evaluated, see ``Method.product``."""
        return self.teacher["encoder"] if self.hand_on == "average" else self.encoder


def cosine(start: float, end: float, progress: float) -> float:
    """A momentum that goes from ``start`` to ``end`` along half a cosine over the run (BYOL, 2006.07733)."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def linear(start: float, end: float, progress: float) -> float:
    """The same in a straight line, staying at ``end`` once progress is beyond 1."""
    return start + min(progress, 1.0) * (end - start)
