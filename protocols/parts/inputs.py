"""What a head reads, as it is typed: ``cls``, ``mean@0.75``, ``cls+mean@every/raw``, ``cls@last4&mean``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from mimbench.errors import UserError
from mimbench.spec import Readout
from protocols.parts.frozen import layer_at

if TYPE_CHECKING:
    from mimbench.encoder import Encoder

Parts = tuple[Readout, ...]  # single-token readouts, whose concatenation is the input

EVERY = "every"
_PLACE = r"0?\.\d+|1(?:\.0)?|last[1-9]\d*|block[1-9]\d*|" + EVERY
_BLOCK = re.compile(r"@block(\d+)")
_TERM = re.compile(rf"(cls|mean|cls\+mean)(?:@({_PLACE}))?(/raw)?")


def check_inputs(texts: Sequence[str], owner: str) -> None:
    """Raise UserError for a text that is no input. owner: the protocol's key, for messages."""
    for text in texts:
        for term in text.split("&"):
            match = _TERM.fullmatch(term)
            if match is None or _share(match[2]) == 0:
                raise UserError(
                    f"{owner}.readouts: {text!r} is not a readout; write cls, mean or cls+mean, with @SHARE "
                    "for the block after that share of the depth (mean@0.75), @block9, @last4 for the last "
                    "four side by side or @every for each block by itself, /raw for tokens without the "
                    "final norm, and & to join several"
                )


def _share(place: str | None) -> float | None:
    """The share of the depth that a place stands for, if it is one."""
    return float(place) if place and place[0] in "01." else None


def inputs_of(texts: Sequence[str], encoder: Encoder, owner: str) -> tuple[dict[str, Parts], list[str]]:
    """The different inputs that this encoder has, by name, and sentences on what was left out.

    ``@every`` becomes one input a block. Raises UserError where nothing is left.
    """
    check_inputs(texts, owner)
    found: dict[str, Parts] = {}
    notes: list[str] = []
    for text in texts:
        for name in _expanded(text, encoder.depth):
            if any(int(block) > encoder.depth for block in _BLOCK.findall(name)):
                notes.append(f"readout {name} left out: the backbone has {encoder.depth} blocks")
                continue
            parts = tuple(dict.fromkeys(p for term in name.split("&") for p in _parts(term, encoder.depth)))
            if any("cls" in part.token for part in parts) and not encoder.has_cls:
                notes.append(f"readout {name} left out: the backbone has no class token")
            elif parts in found.values():
                notes.append(f"readout {name} left out: at a depth of {encoder.depth} another one equals it")
            else:
                found[name] = parts
    if not found:
        lacking = "are all of the class token, which this backbone does not have; use mean"
        if encoder.has_cls:
            lacking = f"are all of blocks that this backbone of {encoder.depth} does not have"
        raise UserError(f"{owner}.readouts={list(texts)} {lacking}")
    return found, notes


def reads_last_only(parts: Parts) -> bool:
    """Whether an input is made of the last block's tokens alone."""
    return all(part.layer == -1 for part in parts)


def _expanded(text: str, depth: int) -> Iterator[str]:
    if EVERY not in text:
        yield text
        return
    for block in range(1, depth + 1):
        yield text.replace(EVERY, f"block{block}")


def _parts(term: str, depth: int) -> Iterator[Readout]:
    match = _TERM.fullmatch(term)
    assert match is not None, "check_inputs has seen it"
    place = match[2] or "1"
    share = _share(place)
    if share is not None:
        layers = [layer_at(share, depth)]
    elif place.startswith("last"):
        layers = list(range(-min(int(place[4:]), depth), 0))
    else:
        layers = [int(place[5:]) - depth - 1]
    for layer in layers:
        norm = "raw" if match[3] else "final"
        yield from Readout(layer=layer, token=match[1], norm=norm).parts  # type: ignore[arg-type]
