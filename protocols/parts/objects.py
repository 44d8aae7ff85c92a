"""The marked objects of detection sets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mimbench.data.targets import Boxes

if TYPE_CHECKING:
    from mimbench.data import Split


def objects(split: Split, index: int) -> Boxes:
    """What is marked in an image of a detection set."""
    target = split.target(index)
    assert isinstance(target, Boxes), "protocols of detection are given data of that task"
    return target


def useful(target: Boxes) -> np.ndarray:
    """Which objects can be learnt: single ones with an area inside the image, bool [n]."""
    return ~(target.crowd | target.degenerate)
