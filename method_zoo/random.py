"""The floor below every method: an encoder as it was initialised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mimbench.encoder import Backbone
from mimbench.errors import UserError
from mimbench.method import Method
from mimbench.registry import find_method
from mimbench.spec import Card, Classes, Readout


class Random(Method):
    """A ViT that is never trained. What a probe reaches on it, architecture and chance give for free.

    like: the method whose architecture and initialisation it has (MAGE's, which reads tokens, reads pixels
    here).
    """

    card = Card(
        key="random",
        name="Random weights",
        paper="baseline",
        role="floor",
        scheme="none",
        masking="none",
        target="none",
        architecture="ViT encoder",
        objective="none",
        classes=Classes(
            masking="none",
            target="none",
            architecture="plain transformer",
            objective="none",
        ),
        recipe=None,
        readout=Readout(token="mean"),
        backbone={"positions": "sincos", "init": "mae"},
        parity="baseline",
        notes=(
            "Architecture and initialisation are MAE's, so that only training lies between the two rows. "
            "Others start from other encoders, some of them far worse ones: random[like=beit] is BEiT's "
            "floor."
        ),
    )

    def __init__(self, backbone: Backbone, *, like: str = "mae"):
        super().__init__()
        self.encoder = backbone

    @classmethod
    def backbone_options(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        key = settings.get("like", "mae")
        other = find_method(key)
        if other.card.role != "method":
            raise UserError(f"random[like={key}]: {key} is no method; name one, such as mae or beit")
        return other.backbone_options({})
