"""Learned directions that features are assigned to, and what keeps the assignments from collapsing."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from method_zoo.parts.collective import averaged, summed


class Prototypes(nn.Module):
    """Cosine of features with ``n`` learned directions: a linear layer whose rows are normalised.

    gain: a learned length of each row, from 1 on; without, all have length 1. Equal to a weight-normalised
    linear layer (arXiv:1602.07868) without bias on normalised features.
    """

    def __init__(self, dim: int, n: int, gain: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n, dim))
        self.gain = nn.Parameter(torch.ones(n, 1)) if gain else None
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, features: Tensor, learn: bool = True) -> Tensor:
        """[..., D] of length 1 -> [..., n]. learn: whether the directions get a gradient; else it is zero."""
        weight = self.weight if learn else self.weight.detach() + 0 * self.weight
        weight = F.normalize(weight, dim=-1)
        return F.linear(features, weight if self.gain is None else self.gain * weight)


class ProjectionHead(nn.Sequential):
    """Linear layers with GELUs between, and an output of length 1: the head of DINO (arXiv:2104.14294)."""

    def __init__(self, dim: int, hidden: int, out: int, layers: int = 3):
        widths = [dim, *[hidden] * (layers - 1), out]
        parts: list[nn.Module] = []
        for before, after in pairwise(widths):
            parts += [nn.Linear(before, after), nn.GELU()]
        super().__init__(*parts[:-1])
        for part in self:
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02)
                nn.init.zeros_(part.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., dim] -> [..., out], of length 1."""
        return F.normalize(super().forward(tokens), dim=-1)


class Centre(nn.Module):
    """Moving average of a teacher's mean logits, subtracted so that no prototype wins everywhere (DINO).

    Logits are observed while a step runs, over all of its micro-batches, and taken up in ``update``, with
    those of all processes; within a step the centre is that of the steps before.
    """

    def __init__(self, n: int, momentum: float):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(n))
        # Of the running step only, so not part of the state.
        self._seen: list[Tensor] = []

    def forward(self, logits: Tensor) -> Tensor:
        """Logits [..., n] less the centre, in the centre's precision."""
        return logits.to(self.value.dtype) - self.value

    def observe(self, mean: Tensor) -> None:
        """Take note of the mean logits [n] of a micro-batch, while training."""
        if self.training:
            self._seen.append(mean.detach().to(self.value.dtype))

    @torch.no_grad()
    def update(self) -> None:
        """centre = momentum · centre + (1 - momentum) · mean; does nothing where nothing was observed."""
        if self._seen:
            mean = averaged(torch.stack(self._seen).mean(0))
            self.value.lerp_(mean, 1 - self.momentum)
            self._seen.clear()


def warmed_up(start: float, end: float, progress: float, share: float) -> float:
    """A value that goes from ``start`` to ``end`` linearly over the first ``share`` of the run."""
    return end if progress >= share else start + (end - start) * progress / share


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-Σ targets · log softmax(logits) over the last dimension, [...]. logits, targets: [..., n]."""
    return -(targets * logits.log_softmax(-1)).sum(-1)


@torch.no_grad()
def sinkhorn(scores: Tensor, iterations: int, eps: float = 0.0) -> Tensor:
    """Scores [..., n, K] > 0 scaled so that each sample's sum to 1 and each prototype gets alike in all.

    Sinkhorn and Knopp's alternation (1967): prototypes first, over the samples of all processes, then
    samples, as SwAV (arXiv:2006.09882), MSN and CAPI do. eps is added to the sums, as in CAPI's code.
    """
    tiny = torch.finfo(scores.dtype).tiny  # a prototype far from everything must not divide by zero
    for _ in range(iterations):
        scores = scores / (summed(scores.sum(-2, keepdim=True)) + eps).clamp_min(tiny)
        scores = scores / (scores.sum(-1, keepdim=True) + eps).clamp_min(tiny)
    return scores
