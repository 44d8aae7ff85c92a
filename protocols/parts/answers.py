"""Test images whose class is chosen among some classes only, or which several classes are right for.

A split may have an ``answers`` attribute of the type below; plain ones have none. A protocol that heeds it
says so by ``takes_answers`` and asks here before it ranks the classes of test images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from mimbench.data import Split

Images = slice | np.ndarray  # places in a split


@dataclass(frozen=True)
class Answers:
    """What may be said of each image, and what is right.

    kinds: int64 [N], the row of each image in the two tables; allowed, right: bool [kinds, classes]. Each
    row of ``right`` holds at least one class, and none that is not allowed.
    """

    kinds: np.ndarray
    allowed: np.ndarray
    right: np.ndarray

    def allowed_for(self, images: Images, device: torch.device) -> Tensor:
        """The classes among which is chosen, bool [M, classes], of the split's images ``images``."""
        return torch.from_numpy(self.allowed[self.kinds[images]]).to(device)

    def right_for(self, images: Images, device: torch.device) -> Tensor:
        """The classes that are right, bool [M, classes]."""
        return torch.from_numpy(self.right[self.kinds[images]]).to(device)


def answers_of(split: Split) -> Answers | None:
    """The answers of a split; None: any class may be said, and its label is right."""
    return getattr(split, "answers", None)


def admitted(
    answers: Answers | None, logits: Tensor, labels: Tensor, images: Images
) -> tuple[Tensor, Tensor]:
    """Logits [M, classes] and labels [M] as they are to be ranked; without answers as they are.

    Classes that are not allowed come last, by a logit of minus infinity, and the label is the right class
    that is ahead of the other right ones. images: which of their split they are.
    """
    if answers is None:
        return logits, labels
    logits = logits.masked_fill(~answers.allowed_for(images, logits.device), -torch.inf)
    return logits, logits.masked_fill(~answers.right_for(images, logits.device), -torch.inf).argmax(1)
