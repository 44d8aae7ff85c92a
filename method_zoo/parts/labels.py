"""Labels, for the few methods that see them."""

from __future__ import annotations

from torch import Tensor

from mimbench.errors import UserError
from mimbench.method import Step
from mimbench.spec import Card


def labels_of(step: Step, card: Card) -> Tensor:
    """The batch's classes, int64 [B]; UserError where the dataset has none."""
    if step.labels is None:
        raise UserError(f"{card.key} learns from labels, which this dataset does not have; leave it out")
    return step.labels
