"""Many softmax regressions on frozen features, trained side by side on the same batches.

Each is what ``nn.Linear``, cross-entropy and ``torch.optim.SGD`` make of it; none touches another. All
that read the same input share its gathering, its standardisation and one matrix product, and the gradient
of softmax regression is written out: a step has a few calls an input, however many candidates there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mimbench import rng
from mimbench.spec import Readout
from protocols.parts.frozen import standard

Features = Mapping[Readout, Tensor]  # of single-token readouts, float32 [N, D]

BN_EPS = 1e-6  # of MAE's probe (arXiv:2111.06377, main_linprobe.py)
TOKENS = ("cls", "cls+mean", "mean")  # in this order the heads that read one token are neighbours


@dataclass(frozen=True)
class Head:
    """One candidate. lr: of SGD, as it is. batch_norm: standardise every feature first."""

    readout: Readout
    lr: float
    batch_norm: bool


class Score(NamedTuple):
    """Per head, in the order given to ``LinearHeads``; NaN where the training diverged."""

    accuracy: list[float]
    loss: list[float]  # mean cross-entropy


class _Block(NamedTuple):
    """The heads that read one input: neighbouring rows of all heads' weights and logits."""

    part: Readout
    batch_norm: bool
    rows: slice
    weight: Tensor  # [rows, D]
    velocity: Tensor  # [rows, D]


class LinearHeads:
    """Softmax regressions, zero at first.

    The objective is convex, so zeros are as good a start as any, and the only randomness of a probe is
    the order of its data. Logits are laid out [heads · classes, batch]: softmax then runs along contiguous
    samples.

    train: the train split's features [N, D] of every single-token readout that ``heads`` need.
    labels: int64 [N], below ``classes``; on the same device.
    """

    def __init__(self, heads: Sequence[Head], train: Features, labels: Tensor, classes: int):
        self.heads, self.train, self.labels, self.classes = tuple(heads), train, labels, classes
        self._order = sorted(range(len(self.heads)), key=lambda i: _place(self.heads[i]))
        reading: dict[tuple[Readout, bool], list[int]] = {}
        for place, head in enumerate(self._laid_out):
            for part in head.readout.parts:
                reading.setdefault((part, head.batch_norm), []).append(place)
        self.standards = {part: standard(train[part], BN_EPS) for part, batch_norm in reading if batch_norm}

        shapes = [(len(places) * classes, train[part].shape[1]) for (part, _), places in reading.items()]
        sizes = [len(self.heads) * classes, *(rows * width for rows, width in shapes)]
        # One buffer for all biases and weights, so that one call updates them.
        self._weights = torch.zeros(sum(sizes), device=labels.device)
        self._velocity = torch.zeros_like(self._weights)
        self._bias, *weights = self._weights.split(sizes)
        self._bias_velocity, *velocities = self._velocity.split(sizes)
        self._blocks = []
        for (key, places), shape, w, v in zip(reading.items(), shapes, weights, velocities, strict=True):
            assert places == list(range(places[0], places[-1] + 1)), "heads of one input are neighbours"
            rows = slice(places[0] * classes, (places[-1] + 1) * classes)
            self._blocks.append(_Block(*key, rows, w.view(shape), v.view(shape)))

    @property
    def _laid_out(self) -> list[Head]:
        return [self.heads[i] for i in self._order]

    def fit(
        self,
        *,
        steps: int,
        batch_size: int,
        momentum: float,
        seed: int,
        report: Callable[[float], None] = lambda done: None,
    ) -> None:
        """SGD with momentum, no weight decay, learning rate on a half cosine to zero, from zero weights.

        The data is the endless stream of permutations that pre-training reads too, cut into batches.
        report: gets the share that is done, now and then.
        """
        device, by_head = self.labels.device, (len(self.heads), self.classes, batch_size)
        self._weights.zero_()
        self._velocity.zero_()
        raw = {b.part: torch.empty(batch_size, b.weight.shape[1], device=device) for b in self._blocks}
        normed = {b.part: torch.empty_like(raw[b.part]) for b in self._blocks if b.batch_norm}
        logits = torch.empty(len(self._bias), batch_size, device=device)
        gradient = torch.empty_like(logits)
        logits_by_head, gradient_by_head = logits.view(by_head), gradient.view(by_head)
        products = [
            (b.weight, b.velocity, x, x.T, logits[b.rows], gradient[b.rows])
            for b in self._blocks
            for x in [(normed if b.batch_norm else raw)[b.part]]
        ]
        target = torch.empty(batch_size, dtype=torch.int64, device=device)
        is_target = torch.empty(self.classes, batch_size, device=device)
        every_class = torch.arange(self.classes, device=device)[:, None]
        ones = torch.ones(batch_size, device=device)
        bias, bias_velocity = self._bias[:, None], self._bias_velocity
        lr = torch.tensor([head.lr for head in self._laid_out], device=device)
        rate = (lr / batch_size)[:, None, None]  # a loss is the mean over its batch
        before = 1.0
        for step, batch in enumerate(stream(seed, len(self.labels), batch_size, steps)):
            batch = batch.to(device)
            for part, x in raw.items():
                torch.index_select(self.train[part], 0, batch, out=x)
            for part, x in normed.items():
                torch.sub(raw[part], self.standards[part].mean, out=x).mul_(self.standards[part].scale)
            torch.index_select(self.labels, 0, batch, out=target)
            torch.eq(every_class, target, out=is_target)

            logits.copy_(bias)
            for weight, _, _, x_t, z, _ in products:
                z.addmm_(weight, x_t)
            torch.softmax(logits_by_head, 1, out=gradient_by_head)
            # The gradient of cross-entropy by the logits is softmax - one-hot.
            cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
            gradient_by_head.sub_(is_target).mul_(rate * cosine)
            # torch's SGD: v = momentum v + g; w -= lr v. Here v holds lr v, so that no head needs its own
            # call; where lr falls from step to step, v falls with it.
            decay = momentum * cosine / before
            for _, velocity, x, _, _, g in products:
                velocity.addmm_(g, x, beta=decay)
            bias_velocity.addmv_(gradient, ones, beta=decay)
            self._weights.sub_(self._velocity)
            before = cosine
            if step % 64 == 0:
                report(step / steps)
        report(1.0)

    @torch.no_grad()
    def score(self, features: Features, labels: Tensor, block: int = 1024) -> Score:
        """Accuracy and mean cross-entropy of every head. features: [M, D] of each part; labels: [M]."""
        right = torch.zeros(len(self.heads), dtype=torch.int64, device=labels.device)
        loss = torch.zeros(len(self.heads), dtype=torch.float64, device=labels.device)
        for first in range(0, len(labels), block):
            rows = slice(first, first + block)
            logits = self._bias[:, None].repeat(1, len(labels[rows]))
            for b in self._blocks:
                logits[b.rows].addmm_(b.weight, self._input(b.part, b.batch_norm, features, rows).T)
            z = logits.view(len(self.heads), self.classes, -1)
            right += (z.argmax(1) == labels[rows]).sum(1)
            own = z.gather(1, labels[rows].expand(len(self.heads), 1, -1)).squeeze(1)
            loss += (z.logsumexp(1) - own).sum(1, dtype=torch.float64)
        accuracy, loss = right.double() / len(labels), loss / len(labels)
        accuracy[~loss.isfinite()] = math.nan
        inverse = torch.tensor(self._order, device=labels.device).argsort()
        return Score(accuracy[inverse].tolist(), loss[inverse].tolist())

    @torch.no_grad()
    def logits(self, head: int, features: Features, rows: slice = slice(None)) -> Tensor:
        """Logits [M, classes] of one head. features: [M, D] of each part of its readout."""
        total = self.bias(head)
        for part, weight in self.weights(head).items():
            total = total + self._input(part, self.heads[head].batch_norm, features, rows) @ weight.T
        return total

    def ranks(self, head: int, features: Features, labels: Tensor, block: int = 4096) -> np.ndarray:
        """The place of the true class in a head's order, 0 the first, int64 [M]; of equals the lower."""
        every_class = torch.arange(self.classes, device=labels.device)
        found = []
        for first in range(0, len(labels), block):
            rows = slice(first, first + block)
            logits, label = self.logits(head, features, rows), labels[rows, None]
            own = logits.gather(1, label)
            found.append(((logits > own) | ((logits == own) & (every_class < label))).sum(1))
        return torch.cat(found).cpu().numpy()

    def weights(self, head: int) -> dict[Readout, Tensor]:
        """A head's weights [classes, D] for each part of its readout; of the standardised features if any."""
        first = self._order.index(head) * self.classes
        chosen, batch_norm = self.heads[head].readout.parts, self.heads[head].batch_norm
        return {
            b.part: b.weight[first - b.rows.start :][: self.classes]
            for b in self._blocks
            if b.part in chosen and b.batch_norm == batch_norm
        }

    def bias(self, head: int) -> Tensor:
        """A head's bias [classes]."""
        return self._bias.view(-1, self.classes)[self._order.index(head)]

    def _input(self, part: Readout, batch_norm: bool, features: Features, rows: slice) -> Tensor:
        x = features[part][rows]
        return (x - self.standards[part].mean) * self.standards[part].scale if batch_norm else x


def _place(head: Head) -> tuple[bool, int, str, int]:
    """Sorts heads so that those which read the same input are neighbours."""
    readout = head.readout
    return head.batch_norm, readout.layer, readout.norm, TOKENS.index(readout.token)


def stream(seed: int, count: int, batch_size: int, steps: int) -> Iterator[Tensor]:
    """Sample indices, int64 [batch_size], of each step: permutations of ``count`` samples end to end."""
    ahead, epoch = np.empty(0, np.int64), 0
    for _ in range(steps):
        while len(ahead) < batch_size:
            ahead = np.concatenate([ahead, rng.permutation(seed, epoch, count)])
            epoch += 1
        yield torch.from_numpy(ahead[:batch_size])
        ahead = ahead[batch_size:]
