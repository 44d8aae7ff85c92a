"""Readouts as they are typed: ``cls``, ``mean@0.75``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mimbench.errors import UserError
from mimbench.spec import Readout
from protocols.parts.frozen import layer_at

if TYPE_CHECKING:
    from mimbench.encoder import Encoder

_READOUT = re.compile(r"(cls|mean|cls\+mean|output)(?:@(0?\.\d+|1(?:\.0)?))?")


def readout_of(text: str, depth: int, owner: str, has_cls: bool = True) -> Readout:
    """``mean@0.75`` -> the mean of the patch tokens three quarters up, through the final norm.

    ``output`` is what the encoder gives out as its one vector: cls, or mean where it has no class token.
    owner: the protocol's key, for messages. Raises UserError for what is no readout.
    """
    match = _READOUT.fullmatch(text)
    if match is None or float(match[2] or 1) <= 0:
        raise UserError(
            f"{owner}.readouts: {text!r} is not a readout; write cls, mean, cls+mean or output, with @SHARE "
            "for the block after that share of the depth, as in mean@0.75"
        )
    token: Any = match[1]
    if token == "output":
        token = "cls" if has_cls else "mean"
    return Readout(layer=layer_at(float(match[2] or 1), depth), token=token)


def usable(texts: Sequence[str], encoder: Encoder, owner: str) -> tuple[dict[str, Readout], list[str]]:
    """The different readouts that this encoder has, by what was typed, and sentences on what was left out.

    Raises UserError where nothing is left.
    """
    found: dict[str, Readout] = {}
    notes = []
    for text in texts:
        readout = readout_of(text, encoder.depth, owner, encoder.has_cls)
        if "cls" in readout.token and not encoder.has_cls:
            notes.append(f"readout {text} left out: the backbone has no class token")
        elif readout in found.values():
            notes.append(f"readout {text} left out: at a depth of {encoder.depth} another one equals it")
        else:
            found[text] = readout
    if not found:
        raise UserError(
            f"{owner}.readouts={list(texts)} are all of the class token, which this backbone "
            "does not have; use mean"
        )
    return found, notes
