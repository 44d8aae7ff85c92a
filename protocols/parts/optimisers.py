"""Optimisers of many small models at once, each with its own learning rate and weight decay.

The parameters of all candidates lie in one buffer, those of one kind behind each other, so that a step is
a few calls however many candidates there are. Each is what torch's optimiser would make of it alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

OptimizerName = Literal["sgd", "lars", "adamw"]

TRUST = 0.001  # trust coefficient of LARS in MoCo v3 and MAE (util/lars.py)
ADAM_EPS = 1e-8


class Segment(NamedTuple):
    """Neighbouring pieces of the buffer, of equal size, one for each of some candidates."""

    start: int
    stop: int
    owners: Tensor  # int64 [pieces]: the candidate each belongs to
    decays: bool  # matrices do, and LARS adapts their rate; biases, norms and tokens are left as they are

    def view(self, buffer: Tensor) -> Tensor:
        """Its part of a buffer, [pieces, size of one]."""
        return buffer[self.start : self.stop].view(len(self.owners), -1)


class Optimizer:
    """One step of all candidates.

    weights: the buffer of all parameters. lr, weight_decay: of each candidate, float32 [candidates].
    gradient: what the caller adds the mean gradient of a batch to; ``carry`` is what it must multiply the
    buffer with beforehand. prescaled: the gradient of a candidate is wanted times its learning rate.
    """

    prescaled = False
    carry = 0.0

    def __init__(
        self,
        weights: Tensor,
        segments: Sequence[Segment],
        lr: Tensor,
        weight_decay: Tensor,
        clip: float = 0.0,
    ):
        self.weights, self.segments, self.lr, self.weight_decay = weights, tuple(segments), lr, weight_decay
        self.gradient = torch.zeros_like(weights)
        self.clip = clip
        self._decaying = bool((weight_decay > 0).any())

    def step(self, factor: float) -> None:
        """Move the weights. factor: of the schedule, in [0, 1], multiplies every learning rate."""
        if self.clip:
            self._clip_norms()
        self._step(factor)

    def _step(self, factor: float) -> None:
        raise NotImplementedError

    def _clip_norms(self) -> None:
        """Each candidate's gradient to a norm of ``clip`` at most, as ``clip_grad_norm_`` does."""
        norm = self._norms(self.gradient, [True] * len(self.segments))
        if self.prescaled:
            norm = norm / self.lr
        share = (self.clip / (norm + 1e-6)).clamp(max=1.0)
        for segment in self.segments:
            segment.view(self.gradient).mul_(share[segment.owners, None])

    def _norms(self, buffer: Tensor, wanted: Sequence[bool]) -> Tensor:
        """L2 norm of each candidate's part of a buffer, over the segments that are wanted; [candidates]."""
        squares = torch.zeros_like(self.lr)
        for segment, taken in zip(self.segments, wanted, strict=True):
            if taken:
                squares.index_add_(0, segment.owners, segment.view(buffer).square().sum(1))
        return squares.sqrt()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs beside the weights."""
        raise NotImplementedError

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state_dict``."""
        raise NotImplementedError


class SGD(Optimizer):
    """torch.optim.SGD with momentum: v = momentum v + g + decay w; w -= lr v. Here v holds lr v.

    alone: gradients of one process need no exchange, so they are added to the velocity right away.
    """

    prescaled = True

    def __init__(self, *args: Any, momentum: float, alone: bool, **options: Any):
        super().__init__(*args, **options)
        self.momentum = momentum
        self.velocity = torch.zeros_like(self.weights)
        if alone and not self.clip:
            self.gradient, self.carry = self.velocity, momentum

    def _step(self, factor: float) -> None:
        if self.gradient is not self.velocity:
            self.velocity.mul_(self.momentum).add_(self.gradient)
        if self._decaying:
            for segment in self.segments:
                if segment.decays:
                    pull = (self.lr * self.weight_decay)[segment.owners, None]
                    segment.view(self.velocity).addcmul_(segment.view(self.weights), pull)
        self.weights.sub_(self.velocity, alpha=factor)

    def state_dict(self) -> dict[str, Any]:
        return {"velocity": self.velocity}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.velocity.copy_(state["velocity"])


class LARS(Optimizer):
    """LARS (You et al. 2017, arXiv:1708.03888) as in MoCo v3's and MAE's ``util/lars.py``.

    Matrices: g += decay w, then g *= 0.001 |w| / |g|, unless one of the norms is zero. Biases move as
    under SGD. v = momentum v + g; w -= lr v. timm's ``Lars`` adds the two norms of the denominator instead,
    so that it is the same without weight decay only; and it does not take many models at once.
    """

    def __init__(self, *args: Any, momentum: float, **options: Any):
        super().__init__(*args, **options)
        self.momentum = momentum
        self.velocity = torch.zeros_like(self.weights)

    def _step(self, factor: float) -> None:
        matrices = [segment.decays for segment in self.segments]
        if self._decaying:
            for segment in self.segments:
                if segment.decays:
                    pull = self.weight_decay[segment.owners, None]
                    segment.view(self.gradient).addcmul_(segment.view(self.weights), pull)
        of_weights = self._norms(self.weights, matrices)
        of_gradient = self._norms(self.gradient, matrices)
        trust = TRUST * of_weights / of_gradient
        trust[(of_weights == 0) | (of_gradient == 0)] = 1.0
        for segment in self.segments:
            if segment.decays:
                segment.view(self.gradient).mul_(trust[segment.owners, None])
        self.velocity.mul_(self.momentum).add_(self.gradient)
        for segment in self.segments:
            rate = (self.lr * factor)[segment.owners, None]
            segment.view(self.weights).addcmul_(segment.view(self.velocity), rate, value=-1.0)

    def state_dict(self) -> dict[str, Any]:
        return {"velocity": self.velocity}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.velocity.copy_(state["velocity"])


class AdamW(Optimizer):
    """torch.optim.AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101), decay for matrices only."""

    def __init__(self, *args: Any, betas: tuple[float, float], **options: Any):
        super().__init__(*args, **options)
        self.betas, self.steps = betas, 0
        self.first, self.second = torch.zeros_like(self.weights), torch.zeros_like(self.weights)
        self._change = torch.empty_like(self.weights)

    def _step(self, factor: float) -> None:
        self.steps += 1
        unbiased = [1 - beta**self.steps for beta in self.betas]
        self.first.lerp_(self.gradient, 1 - self.betas[0])
        self.second.mul_(self.betas[1]).addcmul_(self.gradient, self.gradient, value=1 - self.betas[1])
        torch.sqrt(self.second, out=self._change)
        self._change.div_(unbiased[1] ** 0.5).add_(ADAM_EPS)
        torch.div(self.first, self._change, out=self._change)
        for segment in self.segments:
            rate = (self.lr * factor)[segment.owners, None]
            weights = segment.view(self.weights)
            if segment.decays and self._decaying:
                weights.mul_(1 - rate * self.weight_decay[segment.owners, None])
            weights.addcmul_(segment.view(self._change), rate, value=-1 / unbiased[0])

    def state_dict(self) -> dict[str, Any]:
        return {"first": self.first, "second": self.second, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.first.copy_(state["first"])
        self.second.copy_(state["second"])
        self.steps = int(state["steps"])


def build_optimizer(
    name: OptimizerName,
    weights: Tensor,
    segments: Sequence[Segment],
    lr: Tensor,
    weight_decay: Tensor,
    *,
    momentum: float,
    beta2: float,
    clip: float = 0.0,
    alone: bool = True,
) -> Optimizer:
    """The optimiser called ``name``. momentum: of SGD and LARS, and the first beta of AdamW.

    clip: of each candidate's gradient norm; 0: none. alone: one process, so that no gradient is exchanged.
    """
    if name == "sgd":
        return SGD(weights, segments, lr, weight_decay, clip=clip, momentum=momentum, alone=alone)
    if name == "lars":
        return LARS(weights, segments, lr, weight_decay, clip=clip, momentum=momentum)
    return AdamW(weights, segments, lr, weight_decay, clip=clip, betas=(momentum, beta2))
