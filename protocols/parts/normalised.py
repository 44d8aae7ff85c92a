"""One token of the last block in one of the normalisations that cosine similarities are taken in."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Literal, NamedTuple

from torch import Tensor

from mimbench.errors import UserError
from mimbench.spec import Readout
from protocols.parts.frozen import standard
from protocols.parts.neighbours import unit

if TYPE_CHECKING:
    from mimbench.encoder import Encoder

# "final": through the encoder's last norm; "raw": as the last block left it; "standardised": raw, by the
# mean and standard deviation of each feature in train.
Normalisation = Literal["standardised", "raw", "final"]
# "output": what the encoder gives out as its one vector, the class token, or the mean where it has none
Token = Literal["cls", "mean", "output"]


class Variant(NamedTuple):
    """What is compared: which token and how it is normalised before its length is made one."""

    token: Literal["cls", "mean"]
    normalisation: Normalisation

    @property
    def readout(self) -> Readout:
        return Readout(token=self.token, norm="final" if self.normalisation == "final" else "raw")

    def content(self) -> dict[str, str]:
        return {"token": self.token, "normalisation": self.normalisation}


def variants(
    tokens: Sequence[Token], normalisations: Sequence[Normalisation], encoder: Encoder, owner: str
) -> tuple[list[Variant], list[str]]:
    """The variants that this encoder has, and sentences on what was left out.

    owner: the protocol's key, for messages. Raises UserError where nothing is left.
    """
    output: Literal["cls", "mean"] = "cls" if encoder.has_cls else "mean"
    asked = list(dict.fromkeys(output if token == "output" else token for token in tokens))
    usable = [token for token in asked if token != "cls" or encoder.has_cls]
    if not usable:
        raise UserError(
            f"{owner}.tokens=[cls] asks for the class token, which this backbone does not have; use mean"
        )
    notes = ["token cls left out: the backbone has no class token"] * (len(usable) < len(asked))
    return [Variant(*pair) for pair in product(usable, dict.fromkeys(normalisations))], notes


def normalised(
    variant: Variant, train: dict[Readout, Tensor], *others: dict[Readout, Tensor]
) -> tuple[Tensor, ...]:
    """Features of train and of ``others`` as the variant compares them: rows of length one."""
    found = [features[variant.readout] for features in (train, *others)]
    if variant.normalisation == "standardised":
        standardised = standard(found[0])
        found = [standardised(features) for features in found]
    return tuple(map(unit, found))
