"""How work says where it is; the command line draws it, the API may ignore it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """One report of a running job."""

    stage: str  # "pre-training", "extracting features", ...
    done: float  # share, in [0, 1]
    rate: float | None = None  # images/s
    loss: float | None = None
    seconds_left: float | None = None


def silent(progress: Progress) -> None:
    """The default report: says nothing."""
