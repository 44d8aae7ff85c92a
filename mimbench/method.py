"""What a pre-training method is to the harness."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor, nn

from mimbench.spec import Card


class Losses(dict[str, Tensor]):
    """Named scalar terms, already weighted; what is minimised is their sum."""

    @property
    def total(self) -> Tensor:
        return sum(self.values())  # type: ignore[return-value]


@dataclass(frozen=True)
class Step:
    """What a method may know of the moment.

    progress: share of the run that is done, in [0, 1).
    keys: int64 [B], one random key a sample (see ``mimbench.rng``); all of a method's draws come from it.
    labels: int64 [B] for methods whose card says ``external="labels"``; None for every other.
    """

    progress: float
    keys: Tensor
    labels: Tensor | None = None


class Method(nn.Module):
    """A pre-training method: maps normalised images to losses and owns an encoder.

    A subclass sets ``card`` and ``self.encoder`` (a backbone, see ``mimbench.encoder.Backbone``) and
    defines ``forward``. Its settings are the keyword-only arguments of ``__init__``, all with defaults
    and annotations (``Annotated[float, Field(gt=0, lt=1)]`` gives a range), which ``mimbench.settings``
    checks before any work starts. Two keyword-only names are not settings but things the harness
    provides: ``num_classes`` (for methods with labels) and ``tokenizer`` (a loaded ``Tokenizer``).
    """

    card: ClassVar[Card]
    default_tokenizer: ClassVar[str | None] = None  # key of the tokenizer trained when none is given
    encoder: nn.Module
    # What it was built with; mimbench.train.build_method sets it.
    settings: Mapping[str, Any] = MappingProxyType({})

    def forward(self, images: Tensor, step: Step) -> Losses:
        """Losses of one batch. images: float [B, 3, H, W], normalised by the card's mean and std."""
        raise NotImplementedError

    def after_step(self, step: Step) -> None:
        """Called after each optimiser step; moving averages live here."""

    def description(self) -> dict[str, Any]:
        """Facts for the record that are known once the method is built."""
        return {}


@runtime_checkable
class Tokenizer(Protocol):
    """What turns images into discrete targets. A trained one is a Method whose card says role="tokenizer"."""

    vocabulary: int

    def ids(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """Token ids, int64 [B, H, W] on ``grid``. images: float [B, 3, S, S] in [0, 1], not normalised."""
        ...
