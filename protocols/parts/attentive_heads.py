"""Attentive probes of several kinds, layers and rates, trained side by side on the same tokens."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mimbench import seeding
from protocols.parts.linear import BN_MOMENTUM
from protocols.parts.optimisers import OptimizerName, Segment, build_optimizer
from protocols.parts.pooling import (
    BN_EPS,
    NORMED_AFTER,
    NORMED_BEFORE,
    Kind,
    Pooling,
    begin,
    parameters_of,
    pool,
)
from protocols.parts.processes import Team

Tokens = Mapping[int, Tensor]  # of layers, counted from the end, float32 [B, N, D]


@dataclass(frozen=True)
class Candidate:
    """One attentive probe. layer: counted from the end. lr, weight_decay: of the optimiser, as they are."""

    pooling: Pooling
    layer: int
    lr: float
    weight_decay: float


class Group:
    """Candidates that pool alike from one layer. members: their numbers.

    parameters: [C, ...] each. statistics: running mean and variance of what is batch-normed.
    """

    def __init__(
        self,
        pooling: Pooling,
        layer: int,
        members: Sequence[int],
        parameters: dict[str, Tensor],
        statistics: tuple[Tensor, Tensor] | None,
    ):
        self.pooling, self.layer, self.members = pooling, layer, tuple(members)
        self.parameters, self.statistics = parameters, statistics

    def logits(self, tokens: Tensor, norm: _BatchNorm | None = None) -> Tensor:
        """Logits [C, B, classes]. norm: batch norm while training; None: by the running statistics."""

        def normed(x: Tensor, dims: tuple[int, ...]) -> Tensor:
            assert self.statistics is not None
            if norm is not None:
                return norm(x, dims, self.statistics)
            mean, variance = self.statistics
            return (x - mean) * (variance + BN_EPS).rsqrt()

        if self.pooling in NORMED_BEFORE:
            tokens = normed(tokens, (0, 1))
        return pool(self.pooling, self.parameters, tokens, lambda x: normed(x, (1,)))

    def packed(self, member: int) -> dict[str, Any]:
        """One candidate as containers and tensors; a group of one, see ``unpacked``."""
        row = slice(member, member + 1)
        of_each = self.pooling in NORMED_AFTER
        return {
            "pooling": self.pooling,
            "layer": self.layer,
            "parameters": {name: value[row].detach().clone() for name, value in self.parameters.items()},
            "statistics": None
            if self.statistics is None
            else [(x[row] if of_each else x).clone() for x in self.statistics],
        }

    @classmethod
    def unpacked(cls, packed: Mapping[str, Any], device: torch.device) -> Group:
        """What ``packed`` gave."""
        statistics = packed["statistics"]
        return cls(
            packed["pooling"],
            packed["layer"],
            [0],
            {name: value.to(device) for name, value in packed["parameters"].items()},
            None if statistics is None else (statistics[0].to(device), statistics[1].to(device)),
        )


class _BatchNorm:
    """Batch norm over the whole batch, shared out over processes, with gradients through its statistics."""

    def __init__(self, team: Team, share: float):
        self.team, self.share = team, share  # of the batch that is here

    def __call__(self, x: Tensor, dims: tuple[int, ...], running: tuple[Tensor, Tensor]) -> Tensor:
        here = math.prod(x.shape[dim] for dim in dims)
        count = round(here / self.share)
        mean = self._sum(x.sum(dims, keepdim=True)) / count
        variance = self._sum((x - mean).square().sum(dims, keepdim=True)) / count
        with torch.no_grad():
            unbiased = variance * (count / max(count - 1, 1))
            for average, now in zip(running, (mean, unbiased), strict=True):
                average.lerp_(now.view(average.shape), BN_MOMENTUM)
        return (x - mean) * (variance + BN_EPS).rsqrt()

    def _sum(self, x: Tensor) -> Tensor:
        if self.team.alone:
            return x
        if not x.requires_grad:
            return self.team.sum_(x)
        from torch.distributed.nn.functional import all_reduce  # not in every build of torch

        return all_reduce(x)


class AttentiveHeads:
    """All candidates; their parameters and gradients lie in one buffer each, see ``optimisers``.

    Candidates of one kind start from the same values, whichever others there are.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        width: int,
        classes: int,
        team: Team,
        *,
        seed: int,
        optimizer: OptimizerName,
        momentum: float,
        beta2: float,
        clip: float,
    ):
        self.candidates, self.team, device = tuple(candidates), team, team.computing
        members: dict[tuple[Pooling, int], list[int]] = {}
        for number, candidate in enumerate(self.candidates):
            members.setdefault((candidate.pooling, candidate.layer), []).append(number)
        plans = {key: parameters_of(key[0], width, classes) for key in members}
        sizes = [
            len(members[key]) * math.prod(kind.shape) for key, plan in plans.items() for kind in plan.values()
        ]
        self.weights = torch.zeros(sum(sizes), device=device)
        self.segments: list[Segment] = []
        self.groups: list[Group] = []
        for key, plan in plans.items():
            leaves = self._leaves(key, plan, members[key], seed)
            statistics = None
            if key[0] in NORMED_BEFORE | NORMED_AFTER:
                shape = (1, 1, width) if key[0] in NORMED_BEFORE else (len(members[key]), 1, width)
                statistics = (torch.zeros(shape, device=device), torch.ones(shape, device=device))
            self.groups.append(Group(*key, members[key], leaves, statistics))
        lr, decay = (
            torch.tensor([getattr(candidate, name) for candidate in self.candidates], device=device)
            for name in ("lr", "weight_decay")
        )
        self.optimizer = build_optimizer(
            optimizer,
            self.weights,
            self.segments,
            lr,
            decay,
            momentum=momentum,
            beta2=beta2,
            clip=clip,
            alone=team.alone,
        )
        self._rate = lr if self.optimizer.prescaled else torch.ones_like(lr)
        leaves_in_order = (leaf for group in self.groups for leaf in group.parameters.values())
        for segment, leaf in zip(self.segments, leaves_in_order, strict=True):
            leaf.grad = segment.view(self.optimizer.gradient).view(leaf.shape)  # autograd adds to it in place

    def _leaves(
        self, key: tuple[Pooling, int], plan: Mapping[str, Kind], members: Sequence[int], seed: int
    ) -> dict[str, Tensor]:
        """The parameters of a group as views into the buffer, with their first values."""
        leaves = {}
        owners = torch.tensor(members, device=self.team.computing)
        for name, kind in plan.items():
            start = self.segments[-1].stop if self.segments else 0
            segment = Segment(start, start + len(members) * math.prod(kind.shape), owners, kind.decays)
            self.segments.append(segment)
            generator = torch.Generator().manual_seed(seeding.key(seed, f"attentive {key[0]} {name}"))
            leaf = segment.view(self.weights).view(len(members), *kind.shape)
            leaf.copy_(begin(kind, generator))
            leaves[name] = leaf.detach().requires_grad_()
        return leaves

    @property
    def normed(self) -> bool:
        """Whether something is batch-normed, so that a batch must be seen as a whole."""
        return any(group.statistics is not None for group in self.groups)

    # -- training ----------------------------------------------------------------------------------

    def learn(self, pieces: Iterable[tuple[Tokens, Tensor]], count: int, factor: float) -> None:
        """One step on this process's share of a batch of ``count`` samples, as tokens and labels [b]."""
        gradient = self.optimizer.gradient
        if self.optimizer.carry:
            gradient.mul_(self.optimizer.carry)
        else:
            gradient.zero_()
        for tokens, labels in pieces:
            norm = _BatchNorm(self.team, len(labels) / count)
            for group in self.groups:
                losses = self._losses(group.logits(tokens[group.layer], norm), labels).sum(1) / count
                (losses * self._rate[list(group.members)]).sum().backward()
        if not self.team.alone:
            self.team.sum_(gradient)
        self.optimizer.step(factor)

    @staticmethod
    def _losses(logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of each candidate and sample, [C, B]."""
        repeated = labels.expand(len(logits), -1)
        return F.cross_entropy(logits.flatten(0, 1), repeated.flatten(), reduction="none").view(
            repeated.shape
        )

    # -- what came of it ---------------------------------------------------------------------------

    @torch.no_grad()
    def score(self, batches: Iterable[tuple[Tokens, Tensor]], count: int) -> tuple[list[float], list[float]]:
        """Accuracy and mean cross-entropy of every candidate; NaN where the training diverged.

        batches: this process's share of the ``count`` samples.
        """
        sums = torch.zeros(2, len(self.candidates), dtype=torch.float64, device=self.team.computing)
        for tokens, labels in batches:
            for group in self.groups:
                logits, members = group.logits(tokens[group.layer]), list(group.members)
                sums[0, members] += (logits.argmax(2) == labels).sum(1)
                sums[1, members] += self._losses(logits, labels).sum(1, dtype=torch.float64)
        if not self.team.alone:
            self.team.sum_(sums)
        accuracy, loss = sums / count
        accuracy[~loss.isfinite()] = math.nan
        return accuracy.tolist(), loss.tolist()

    def keep(self, candidate: int) -> dict[str, Any]:
        """A copy of one candidate as it is, for ``Group.unpacked``."""
        group = next(group for group in self.groups if candidate in group.members)
        return group.packed(group.members.index(candidate))

    # -- stopping and going on ---------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimiser and running statistics."""
        return {
            "weights": self.weights,
            "optimizer": self.optimizer.state_dict(),
            "statistics": [list(group.statistics or ()) for group in self.groups],
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state_dict``."""
        self.weights.copy_(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        for group, saved in zip(self.groups, state["statistics"], strict=True):
            for own, value in zip(group.statistics or (), saved, strict=True):
                own.copy_(value)
