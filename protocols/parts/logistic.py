"""Softmax regression with an L2 penalty, as scikit-learn defines it, computed where the features are.

The optimiser is scipy's L-BFGS-B, which scikit-learn calls too. Loss and gradient come from torch, block by
block on whatever device the features lie: scikit-learn itself would hold ImageNet's 1.3 million times 1000
logits several times over, in the memory of the host.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional as F

from protocols.parts.answers import Answers, admitted
from protocols.parts.fitted import ranks_of
from protocols.parts.frozen import Standard

BLOCK = 2**22  # numbers of a block of features or logits: 16 MB
KEPT = 2**27  # of all features, up to which they are standardised once and kept: 512 MB
EXACT = 2**28  # of multiplications, up to which they are of float64
ALONE = 2**24  # of multiplications, up to which threads wait for each other longer than they compute


class Samples(NamedTuple):
    """Features and labels of one split."""

    parts: tuple[Tensor, ...]  # float32 [N, D] each, side by side one input
    labels: Tensor  # int64 [N], on the same device


@dataclass(frozen=True)
class Fit:
    """A fitted regression, in terms of the standardised features."""

    weight: np.ndarray  # float64 [classes, D]
    bias: np.ndarray  # float64 [classes]
    iterations: int
    gradient: float  # largest entry at the end, as a share of that at the start from zero
    converged: bool


class Regression:
    """Fits of one input by one definition of the penalty, for any C.

    Minimises, as ``sklearn.linear_model.LogisticRegression(C=C)``, C · Σ cross-entropy + ½ Σ weight², the
    intercept without penalty. Of two classes scikit-learn fits the difference of their weights alone; that
    optimum is found here by twice the penalty.

    sets: what it is fitted to. standards: of each part. scaled: the penalty is on the weights of
    standardised features; otherwise on those of the features as they are.

    The optimiser works on standardised features either way, and on weights in units of the curvature that
    they have at zero. That changes no optimum and spares thousands of iterations where features differ in
    scale. Products of features are float64 for small sets and float32 for large ones, all else is float64.
    """

    def __init__(self, sets: Sequence[Samples], classes: int, standards: Sequence[Standard], scaled: bool):
        self.standards, self.classes = tuple(standards), classes
        self._count = sum(len(samples.labels) for samples in sets)
        self._widths = [len(standard.mean) for standard in standards]
        numbers = self._count * sum(self._widths)
        self._kept = numbers <= KEPT
        self._dtype = torch.float64 if self._kept and numbers * classes <= EXACT else torch.float32
        self._alone = numbers * classes <= ALONE
        self._sets = [
            Samples(tuple(part.to(self._dtype) for part in self._standardised(samples.parts)), samples.labels)
            if self._kept
            else samples
            for samples in sets
        ]
        scale = self._joined("scale")
        # A weight of a feature as it is = a weight of the standardised one · scale; none for the bias.
        self._penalty = np.append(np.ones(len(scale)) if scaled else scale**2, 0.0)
        self._at_zero: np.ndarray | None = None

    def fit(self, C: float, start: Fit | None = None, *, tolerance: float, max_iterations: int) -> Fit:
        """The optimum for one C, sought from ``start`` (zeros by default).

        tolerance: it is found when no entry of the gradient exceeds this share of the largest one at zero.
        """
        with _one_thread() if self._alone else nullcontext():
            return self._fit(C, start, tolerance, max_iterations)

    def _fit(self, C: float, start: Fit | None, tolerance: float, max_iterations: int) -> Fit:
        zeros = np.zeros((self.classes, len(self._penalty)))
        if self._at_zero is None:
            self._at_zero = self._loss_and_gradient(zeros)[1]
        penalty = (2 if self.classes == 2 else 1) / (C * self._count) * self._penalty
        # The curvature of the mean cross-entropy by a weight of a standardised feature, all classes being
        # equally probable, is (1 - 1/K)/K.
        unit = (penalty + (1 - 1 / self.classes) / self.classes) ** -0.5

        def value_and_gradient(steps: np.ndarray) -> tuple[float, np.ndarray]:
            weights = steps.reshape(zeros.shape) * unit
            loss, gradient = self._loss_and_gradient(weights)
            return (
                loss + 0.5 * float((penalty * weights**2).sum()),
                ((gradient + penalty * weights) * unit).ravel(),
            )

        steepest = float(np.abs(self._at_zero * unit).max()) or 1.0  # 0: zero is the optimum
        begin = zeros if start is None else np.column_stack([start.weight, start.bias]) / unit
        found = minimize(
            value_and_gradient,
            begin.ravel(),
            jac=True,
            method="L-BFGS-B",
            options={
                "maxiter": max_iterations,
                "maxfun": 10 * max_iterations,
                "maxls": 50,  # as scikit-learn's, and the next: the gradient is to decide
                "ftol": 64 * np.finfo(float).eps,
                "gtol": tolerance * steepest,
            },
        )
        gradient = float(np.abs(found.jac).max()) / steepest
        weights = found.x.reshape(zeros.shape) * unit
        return Fit(weights[:, :-1], weights[:, -1], int(found.nit), gradient, gradient <= tolerance)

    @torch.no_grad()
    def logits(self, fit: Fit, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        """Logits float64 of one block of samples after the other, [b, classes]. parts: [M, D] each."""
        weights, bias = self._on(parts[0].device, fit.weight, fit.bias, torch.float32)
        for rows in _blocks(len(parts[0]), self._height):
            yield _logits(self._standardised([part[rows] for part in parts]), weights, bias)

    def coefficients(self, fit: Fit) -> tuple[np.ndarray, np.ndarray]:
        """Weights [classes, D] and bias [classes], float64, of the features as they are."""
        weight = fit.weight * self._joined("scale")
        return weight, fit.bias - weight @ self._joined("mean")

    @property
    def _height(self) -> int:
        return max(1, BLOCK // max(self.classes, *self._widths))

    def _joined(self, name: str) -> np.ndarray:
        return torch.cat([getattr(standard, name) for standard in self.standards]).double().cpu().numpy()

    def _standardised(self, parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(standard(part) for standard, part in zip(self.standards, parts, strict=True))

    def _on(
        self, device: torch.device, weight: np.ndarray, bias: np.ndarray, dtype: torch.dtype
    ) -> tuple[list[Tensor], Tensor]:
        weights = torch.from_numpy(weight).to(dtype).to(device).split(self._widths, dim=1)
        return list(weights), torch.from_numpy(bias).to(device)

    @torch.no_grad()
    def _loss_and_gradient(self, weights: np.ndarray) -> tuple[float, np.ndarray]:
        """The mean cross-entropy under ``weights`` [classes, D + 1], the bias last, and its gradient."""
        device = self._sets[0].labels.device
        bias_last = np.ascontiguousarray(weights[:, -1])
        split, bias = self._on(device, weights[:, :-1], bias_last, self._dtype)
        loss = torch.zeros((), dtype=torch.float64, device=device)
        by_weight = [torch.zeros(w.shape, dtype=torch.float64, device=device) for w in split]
        by_bias = torch.zeros_like(bias)
        for samples in self._sets:
            for rows in _blocks(len(samples.labels), self._height):
                inputs = tuple(part[rows] for part in samples.parts)
                if not self._kept:
                    inputs = self._standardised(inputs)
                labels = samples.labels[rows, None]
                # In float64: where the penalty is strong, the loss is log K and moves in its last digits.
                logarithm = _logits(inputs, split, bias).log_softmax(1)
                loss -= logarithm.gather(1, labels).sum()
                error = logarithm.exp_()
                error.scatter_add_(1, labels, error.new_full(labels.shape, -1.0))
                by_bias += error.sum(0)
                error = error.to(self._dtype)
                for total, part in zip(by_weight, inputs, strict=True):
                    total += error.T @ part
        gradient = torch.cat([*by_weight, by_bias[:, None]], 1) / self._count
        return float(loss) / self._count, gradient.cpu().numpy()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on the CPU with one thread, and afterwards with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _blocks(count: int, height: int) -> Iterator[slice]:
    return (slice(first, min(first + height, count)) for first in range(0, count, height))


def _logits(inputs: Sequence[Tensor], weights: Sequence[Tensor], bias: Tensor) -> Tensor:
    total = F.linear(inputs[0], weights[0])
    for part, weight in zip(inputs[1:], weights[1:], strict=True):
        total.addmm_(part, weight.T)
    return total.double() + bias


class Judged(NamedTuple):
    """How a fit does on a split."""

    accuracy: float
    loss: float  # mean cross-entropy


def judge(regression: Regression, fit: Fit, samples: Samples) -> Judged:
    """Accuracy and mean cross-entropy of ``fit`` on ``samples``."""
    right, loss, first = 0, 0.0, 0
    for logits in regression.logits(fit, samples.parts):
        labels = samples.labels[first : first + len(logits)]
        right += int((logits.argmax(1) == labels).sum())
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
        first += len(logits)
    return Judged(right / first, loss / first)


def ranks(regression: Regression, fit: Fit, samples: Samples, answers: Answers | None = None) -> np.ndarray:
    """The place of the true class in the order of the logits, 0 the first, int64 [M]; of equals the lower.

    answers: of the samples, see ``protocols.parts.answers``.
    """
    found, first = [], 0
    for logits in regression.logits(fit, samples.parts):
        rows = slice(first, first + len(logits))
        found.append(ranks_of(*admitted(answers, logits, samples.labels[rows], rows)))
        first += len(logits)
    return torch.cat(found).cpu().numpy()
