"""What a pre-training method is to the harness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor, nn

from mimbench.encoder import Encoded
from mimbench.spec import Card
from mimbench.trainee import Crop, Losses, Step, Trainee

__all__ = ["Crop", "Losses", "Method", "Step", "Teacher", "Tokenizer"]


class Method(Trainee):
    """A pre-training method: maps normalised images to losses and owns an encoder.

    A subclass sets ``card`` and ``self.encoder`` (a backbone, see ``mimbench.encoder.Backbone``) and
    defines ``forward``. Its settings are the keyword-only arguments of ``__init__``, all with defaults
    and annotations (``Annotated[float, Field(gt=0, lt=1)]`` gives a range), which ``mimbench.settings``
    checks before any work starts. Some keyword-only names are not settings but things the harness
    provides: ``num_classes`` (for methods with labels) and whatever ``needs`` names.

    needs: what other job's product each of these keywords gets, and the key of the method that is trained
    for it when the user gives none: ``{"tokenizer": "vqvae"}``, ``{"teacher": "ibot"}``. A keyword that
    ends in "tokenizer" gets a ``Tokenizer``, one that ends in "teacher" a ``Teacher``. None instead of a
    key: optional, the keyword's default then says what happens without.

    views: further crops of each training image that ``Step.views`` is to hold, beside the one that all
    methods get. An attribute of the instance, since settings may decide it.

    couples_batch: whether an image's loss depends on the other images of its batch (contrast, batch
    statistics, balanced assignment). Such methods gather over processes (``method_zoo.parts.collective``),
    so that two processes with half of a batch each compute what one computes with all of it.

    alignment: the name of its linear layer that takes every token of the encoder, the class token too, to
    the token of its teacher in the same place. What can be done with the teacher's output, such as reading
    it by CLIP's text tower, can then be done with the encoder's.
    """

    card: ClassVar[Card]
    needs: ClassVar[Mapping[str, str | None]] = MappingProxyType({})
    couples_batch: ClassVar[bool] = False
    alignment: ClassVar[str | None] = None
    # What it was built with; mimbench.train.build_method sets it.
    settings: Mapping[str, Any] = MappingProxyType({})

    @classmethod
    def backbone_options(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """What it asks of the encoder's architecture under these settings; usually what its card says."""
        return dict(cls.card.backbone)

    @property
    def normalisation(self) -> tuple[Sequence[float], Sequence[float]]:
        """The card's."""
        return self.card.mean, self.card.std

    @property
    def labelled(self) -> bool:
        """As the card says."""
        return self.card.external == "labels"

    def forward(self, images: Tensor, step: Step) -> Losses:
        """Losses of one batch. images: float [B, 3, H, W], normalised by the card's mean and std."""
        raise NotImplementedError

    @property
    def product(self) -> nn.Module:
        """The encoder that is handed on and evaluated: the one that learns, unless a method overrides it."""
        return self.encoder

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


@runtime_checkable
class Teacher(Protocol):
    """A frozen encoder that gives a method its targets. ``method_zoo.parts.teachers`` makes them."""

    embed_dim: int
    depth: int
    num_heads: int
    grid: tuple[int, int]  # of its patches: the student's, whatever the patch size

    def encode(self, images: Tensor, layers: Sequence[int] = (), attention: bool = False) -> Encoded:
        """Tokens of the whole image, as of ``Backbone.encode``, without gradients.

        images: float [B, 3, S, S] in [0, 1], not normalised; resized to what the teacher takes.
        """
        ...

    def query_key_value(self, layer: int, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [B, heads, T, D / heads] of block ``layer`` (from the end, -1 last)
        on its input ``tokens`` [B, T, D], class token first: the output of the block before."""
        ...
