"""Many softmax regressions on frozen features, trained side by side on the same batches.

Each is what ``nn.Linear``, cross-entropy and one of torch's optimisers make of it; none touches another.
All that read the same input share its standardisation and one matrix product, and the gradient of softmax
regression is written out: a step has a few calls an input, however many candidates there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mimbench import seeding
from mimbench.spec import Readout
from protocols.parts.fitted import BN_EPS, Features, Fitted, Head, place_of
from protocols.parts.frozen import Standard
from protocols.parts.optimisers import OptimizerName, Segment, build_optimizer

BN_MOMENTUM = 0.1  # torch's
LOGITS = 2**25  # held at once: 128 MB, and as much for their gradient


class Score(NamedTuple):
    """Per head, in the order given to ``LinearHeads``; NaN where the training diverged."""

    accuracy: list[float]
    loss: list[float]  # mean cross-entropy


class _Block(NamedTuple):
    """The heads that read one input: neighbouring rows of all heads' weights and logits."""

    part: Readout
    batch_norm: bool
    rows: slice
    places: slice
    weight: Tensor  # [rows, D]
    start: int  # in the buffer of all weights

    def of(self, buffer: Tensor) -> Tensor:
        """Its part of a buffer that is laid out as the weights are, [rows, D]."""
        return buffer[self.start : self.start + self.weight.numel()].view(self.weight.shape)


class LinearHeads:
    """Softmax regressions.

    Logits are laid out [heads · classes, batch]: softmax then runs along contiguous samples.

    widths: how many features each single-token readout has that ``heads`` need.
    init_std: of the normal distribution that weights are drawn from at first, the same for all heads.
    Softmax regression is convex, so zeros are as good a start as any; LARS, whose steps are proportional
    to the weights, needs more than zeros. standards: what batch norm standardises by; without, by the
    batch's own statistics, and when scored by their running average, as ``nn.BatchNorm1d`` does.
    total: sums a tensor over the processes that share a batch, in place.
    """

    def __init__(
        self,
        heads: Sequence[Head],
        widths: Mapping[Readout, int],
        classes: int,
        *,
        optimizer: OptimizerName = "sgd",
        momentum: float = 0.9,
        beta2: float = 0.999,
        init_std: float = 0.0,
        seed: int = 0,
        standards: Mapping[Readout, Standard] | None = None,
        total: Callable[[Tensor], Tensor] | None = None,
        device: torch.device | str = "cpu",
    ):
        self.heads, self.classes, self.device, self._total = tuple(heads), classes, device, total
        self._order = sorted(range(len(self.heads)), key=lambda i: place_of(self.heads[i]))
        inputs = dict.fromkeys((part, head.batch_norm) for head in self._laid_out for part in head.parts)
        self._raw = [part for part, batch_norm in inputs if not batch_norm]
        self._normed = [part for part, batch_norm in inputs if batch_norm]
        self._given = None if standards is None else {part: standards[part] for part in self._normed}
        self._running = {  # mean and variance
            part: (torch.zeros(widths[part], device=device), torch.ones(widths[part], device=device))
            for part in self._normed
        }
        self._blocks = self._allocate(inputs, widths)
        if init_std:
            self._initialise(init_std, seed)
        lr, decay = (
            torch.tensor([getattr(head, name) for head in self._laid_out], device=device)
            for name in ("lr", "weight_decay")
        )
        every = torch.arange(len(self.heads), device=device)
        segments = [Segment(0, len(self._bias), every, decays=False)]
        segments += [
            Segment(b.start, b.start + b.weight.numel(), every[b.places], decays=True) for b in self._blocks
        ]
        self.optimizer = build_optimizer(
            optimizer,
            self._weights,
            segments,
            lr,
            decay,
            momentum=momentum,
            beta2=beta2,
            alone=total is None,
        )
        self._rate = (lr if self.optimizer.prescaled else torch.ones_like(lr))[:, None, None]
        self._every_class = torch.arange(classes, device=device)[:, None]
        self._buffers: dict[int, tuple[Tensor, ...]] = {}

    @property
    def _laid_out(self) -> list[Head]:
        return [self.heads[i] for i in self._order]

    def _allocate(
        self, inputs: Mapping[tuple[Readout, bool], None], widths: Mapping[Readout, int]
    ) -> list[_Block]:
        """One buffer for all biases and weights, so that one call updates them, and views into it."""
        runs: list[tuple[Readout, bool, slice]] = []
        for part, batch_norm in inputs:
            places = [
                place
                for place, head in enumerate(self._laid_out)
                if part in head.parts and head.batch_norm == batch_norm
            ]
            # Mostly one run: heads are ordered so that those of one input are neighbours.
            for _, pairs in groupby(enumerate(places), lambda pair: pair[1] - pair[0]):
                found = [place for _, place in pairs]
                runs.append((part, batch_norm, slice(found[0], found[-1] + 1)))
        size = len(self.heads) * self.classes
        ends = [size]
        for part, _, run in runs:
            ends.append(ends[-1] + (run.stop - run.start) * self.classes * widths[part])
        self._weights = torch.zeros(ends[-1], device=self.device)
        self._bias = self._weights[:size]
        blocks = []
        for (part, batch_norm, run), start, stop in zip(runs, ends, ends[1:], strict=False):
            rows = slice(run.start * self.classes, run.stop * self.classes)
            weight = self._weights[start:stop].view(rows.stop - rows.start, widths[part])
            blocks.append(_Block(part, batch_norm, rows, run, weight, start))
        return blocks

    def _initialise(self, std: float, seed: int) -> None:
        """The same draws for every head that reads a part, whichever other heads there are."""
        for block in self._blocks:
            generator = torch.Generator().manual_seed(seeding.key(seed, f"linear head {block.part.label}"))
            drawn = torch.empty(self.classes, block.weight.shape[1])
            nn.init.trunc_normal_(drawn, std=std, generator=generator)
            block.weight.view(-1, *drawn.shape).copy_(drawn)

    # -- training ----------------------------------------------------------------------------------

    def learn(self, features: Features, labels: Tensor, count: int, factor: float) -> None:
        """One step on this process's share of a batch of ``count`` samples.

        features: [b, D] of each part. factor: of the learning rates, in [0, 1].
        """
        inputs = {(part, False): features[part] for part in self._raw}
        inputs |= {(part, True): self._normalised(part, features[part], count) for part in self._normed}
        gradient, carry = self.optimizer.gradient, self.optimizer.carry
        chunk = max(1, LOGITS // len(self._bias))
        for first in range(0, len(labels), chunk):
            rows = slice(first, first + chunk)
            self._accumulate(inputs, labels[rows], rows, count, gradient, carry)
            carry = 1.0
        if self._total is not None:
            self._total(gradient)
        self.optimizer.step(factor)

    def _accumulate(
        self,
        inputs: Mapping[tuple[Readout, bool], Tensor],
        labels: Tensor,
        rows: slice,
        count: int,
        gradient: Tensor,
        carry: float,
    ) -> None:
        """``gradient`` = carry · ``gradient`` + that of the samples ``rows`` of the inputs."""
        size = len(labels)
        if size not in self._buffers:
            rows_of = (len(self._bias), len(self._bias), self.classes)
            self._buffers[size] = tuple(torch.empty(n, size, device=self.device) for n in rows_of)
        logits, error, is_target = self._buffers[size]
        by_head = (len(self.heads), self.classes, size)
        logits.copy_(self._bias[:, None])
        batch = [(b, inputs[b.part, b.batch_norm][rows]) for b in self._blocks]
        for block, x in batch:
            logits[block.rows].addmm_(block.weight, x.T)
        # The gradient of cross-entropy by the logits is softmax - one-hot; a loss is a mean over the batch.
        errors = torch.softmax(logits.view(by_head), 1, out=error.view(by_head))
        torch.eq(self._every_class, labels, out=is_target)
        errors.sub_(is_target).mul_(self._rate / count)
        for block, x in batch:
            block.of(gradient).addmm_(error[block.rows], x, beta=carry)
        bias = gradient[: len(self._bias)]
        bias.addmv_(error, torch.ones(size, device=self.device), beta=carry)

    def _normalised(self, part: Readout, x: Tensor, count: int) -> Tensor:
        """Features as batch norm hands them on; running statistics move along."""
        if self._given is not None:
            return self._given[part](x)
        sums = torch.stack([x.sum(0, dtype=torch.float64), x.double().square().sum(0)])
        if self._total is not None:
            self._total(sums)
        mean = sums[0] / count
        variance = (sums[1] / count - mean.square()).clamp_(min=0)
        unbiased = variance * (count / max(count - 1, 1))
        for running, now in zip(self._running[part], (mean, unbiased), strict=True):
            running.lerp_(now.float(), BN_MOMENTUM)
        return Standard(mean.float(), (variance + BN_EPS).rsqrt().float())(x)

    @property
    def standards(self) -> dict[Readout, Standard]:
        """What batch norm standardises by when heads are scored."""
        if self._given is not None:
            return self._given
        return {
            p: Standard(mean, (variance + BN_EPS).rsqrt()) for p, (mean, variance) in self._running.items()
        }

    # -- what came of it ---------------------------------------------------------------------------

    @torch.no_grad()
    def score(
        self, features: Features, labels: Tensor, block: int = 1024, share: tuple[int, int] = (0, 1)
    ) -> Score:
        """Accuracy and mean cross-entropy of every head. features: [M, D] of each part; labels: [M].

        share: (rank, processes): the blocks of samples that this process sees to.
        """
        block = max(1, min(block, LOGITS // len(self._bias)))
        sums = torch.zeros(2, len(self.heads), dtype=torch.float64, device=labels.device)
        standards = self.standards
        for first in range(share[0] * block, len(labels), share[1] * block):
            rows = slice(first, first + block)
            logits = self._bias[:, None].repeat(1, len(labels[rows]))
            for b in self._blocks:
                x = features[b.part][rows].to(logits.device)
                x = standards[b.part](x) if b.batch_norm else x
                logits[b.rows].addmm_(b.weight, x.T)
            z = logits.view(len(self.heads), self.classes, -1)
            own = z.gather(1, labels[rows].expand(len(self.heads), 1, -1)).squeeze(1)
            sums[0] += (z.argmax(1) == labels[rows]).sum(1)
            sums[1] += (z.logsumexp(1) - own).sum(1, dtype=torch.float64)
        if self._total is not None and share[1] > 1:
            self._total(sums)
        accuracy, loss = sums / len(labels)
        accuracy[~loss.isfinite()] = math.nan
        inverse = torch.tensor(self._order, device=labels.device).argsort()
        return Score(accuracy[inverse].tolist(), loss[inverse].tolist())

    def fitted(self, head: int) -> Fitted:
        """A copy of one head as it is now."""
        place, chosen, standards = self._order.index(head), self.heads[head], self.standards
        weights = {
            b.part: b.weight[(place - b.places.start) * self.classes :][: self.classes].clone()
            for b in self._blocks
            if b.places.start <= place < b.places.stop
            and b.part in chosen.parts
            and b.batch_norm == chosen.batch_norm
        }
        return Fitted(
            {part: weights[part] for part in chosen.parts},
            self._bias.view(-1, self.classes)[place].clone(),
            {part: Standard(*(x.clone() for x in standards[part])) for part in chosen.parts}
            if chosen.batch_norm
            else {},
        )

    # -- stopping and going on ---------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimiser and running statistics."""
        return {
            "weights": self._weights,
            "optimizer": self.optimizer.state_dict(),
            "running": {part.label: list(found) for part, found in self._running.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state_dict``."""
        self._weights.copy_(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        for part, running in self._running.items():
            for own, saved in zip(running, state["running"][part.label], strict=True):
                own.copy_(saved)
