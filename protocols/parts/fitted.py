"""A linear head: what is asked of it, and what it says once it is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mimbench.spec import Readout
from protocols.parts.answers import Answers, admitted
from protocols.parts.frozen import Standard, standard

Features = Mapping[Readout, Tensor]  # of single-token readouts, float32 [N, D]

BN_EPS = 1e-6  # of MAE's probe (arXiv:2111.06377, main_linprobe.py)
TOKENS = ("cls", "cls+mean", "mean")  # in this order the heads that read one token are neighbours


@dataclass(frozen=True)
class Head:
    """One candidate.

    parts: the single-token readouts whose concatenation it reads. lr, weight_decay: of the optimiser, as
    they are. batch_norm: standardise every feature first.
    """

    parts: tuple[Readout, ...]
    lr: float
    batch_norm: bool
    weight_decay: float = 0.0


def exact_standards(heads: Sequence[Head], train: Features) -> dict[Readout, Standard]:
    """Standardisation by all of train, for the parts that heads with batch norm read."""
    parts = dict.fromkeys(part for head in heads if head.batch_norm for part in head.parts)
    return {part: standard(train[part], BN_EPS) for part in parts}


def place_of(head: Head) -> tuple[Any, ...]:
    """Sorts heads so that those which read the same input are neighbours."""
    last = max(head.parts, key=lambda part: part.layer)
    tokens = "+".join(sorted({part.token for part in head.parts if part.layer == last.layer}))
    layers = sorted({part.layer for part in head.parts})
    return head.batch_norm, last.layer, last.norm, TOKENS.index(tokens), layers


@dataclass(frozen=True)
class Fitted:
    """One trained head by itself: weights [classes, D] of each part, of the standardised features if any."""

    weights: dict[Readout, Tensor]
    bias: Tensor  # [classes]
    standards: dict[Readout, Standard]

    def logits(self, features: Features, rows: slice = slice(None)) -> Tensor:
        """Logits [M, classes]. features: [M, D] of each part."""
        total = self.bias
        for part, weight in self.weights.items():
            x = features[part][rows].to(weight.device)
            total = total + (self.standards[part](x) if self.standards else x) @ weight.T
        return total

    def ranks(
        self, features: Features, labels: Tensor, answers: Answers | None = None, block: int = 4096
    ) -> np.ndarray:
        """The place of the true class in the head's order, 0 the first, int64 [M]; of equals the lower.

        answers: of the images, see ``protocols.parts.answers``.
        """
        found = []
        for first in range(0, len(labels), block):
            rows = slice(first, first + block)
            found.append(ranks_of(*admitted(answers, self.logits(features, rows), labels[rows], rows)))
        return torch.cat(found).cpu().numpy()

    def packed(self) -> dict[str, Any]:
        """As containers and tensors, for a checkpoint."""
        return {
            "weights": {part.label: weight for part, weight in self.weights.items()},
            "bias": self.bias,
            "standards": {part.label: list(found) for part, found in self.standards.items()},
        }

    @classmethod
    def unpacked(
        cls, packed: Mapping[str, Any], parts: Sequence[Readout], device: torch.device | str
    ) -> Fitted:
        """What ``packed`` gave; parts: those that are meant by its labels."""
        named = {part.label: part for part in parts}
        return cls(
            {named[label]: weight.to(device) for label, weight in packed["weights"].items()},
            packed["bias"].to(device),
            {
                named[label]: Standard(*(x.to(device) for x in found))
                for label, found in packed["standards"].items()
            },
        )


def ranks_of(logits: Tensor, labels: Tensor) -> Tensor:
    """The place of the true class among logits [M, classes], 0 the first, int64 [M]; of equals the lower."""
    every_class = torch.arange(logits.shape[1], device=logits.device)
    own, label = logits.gather(1, labels[:, None]), labels[:, None]
    return ((logits > own) | ((logits == own) & (every_class < label))).sum(1)
