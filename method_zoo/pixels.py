"""The floor below every encoder: no encoder."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from method_zoo.backbones.pixels import Pixels
from mimbench.encoder import Backbone
from mimbench.method import Method
from mimbench.spec import Card, Classes, Readout


class RawPixels(Method):
    """The image itself as a feature vector, averaged down to ``side`` x ``side`` pixels where it is larger.

    An encoder below this row has lost information that a linear layer could have used. Of the backbone
    only the image size and the patch grid are read.
    """

    card = Card(
        key="pixels",
        name="Raw pixels",
        paper="baseline",
        role="floor",
        scheme="none",
        masking="none",
        target="none",
        architecture="none",
        objective="none",
        classes=Classes(
            masking="none",
            target="none",
            architecture="none",
            objective="none",
        ),
        recipe=None,
        readout=Readout(token="cls"),
        parity="baseline",
        notes="The class token is the image; a patch token is the patch's own pixels.",
    )

    def __init__(self, backbone: Backbone, *, side: Annotated[int, Field(ge=1)] = 32):
        super().__init__()
        image_size = int(backbone.config["image_size"])
        self.encoder = Pixels(
            image_size=image_size, patch_size=image_size // backbone.grid[0], side=min(side, image_size)
        )
