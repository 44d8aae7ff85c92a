"""The floor below every method: an encoder as it was initialised."""

from __future__ import annotations

from mimbench.encoder import Backbone
from mimbench.method import Method
from mimbench.spec import Card, Readout


class Random(Method):
    """A ViT that is never trained. What a probe reaches on it, architecture and chance give for free."""

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
        recipe=None,
        readout=Readout(token="mean"),
        backbone={"positions": "sincos", "init": "mae"},
        parity="baseline",
        notes="Architecture and initialisation are MAE's, so that only training lies between the two rows.",
    )

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.encoder = backbone
