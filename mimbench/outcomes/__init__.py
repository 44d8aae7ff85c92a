"""What came out for each test image, in a form that any number of tables can be made of. Imports no torch.

A protocol hands over one of these kinds. Each knows its metric as a function of how often every image
counts, which is all that intervals and paired tests need (``mimbench.stats``).
"""

from __future__ import annotations

from typing import Any

from mimbench.outcomes.base import Outcomes
from mimbench.outcomes.detections import Detections
from mimbench.outcomes.means import Hits, Values
from mimbench.outcomes.overlaps import Overlaps

__all__ = ["Detections", "Hits", "Outcomes", "Overlaps", "Values", "unpack"]

KINDS: dict[str, type[Outcomes]] = {kind.kind: kind for kind in (Hits, Values, Overlaps, Detections)}


def unpack(packed: dict[str, Any]) -> Outcomes:
    """The outcomes that ``Outcomes.pack`` packed; without a kind, hits. Raises ValueError when damaged."""
    kind = packed.get("kind", Hits.kind)
    if kind not in KINDS:
        raise ValueError(f"per-image outcomes of the kind {kind!r}; known are {', '.join(KINDS)}")
    return KINDS[kind].unpacked(packed)
