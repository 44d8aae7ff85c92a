"""MAE's files as the transformers library wrote them anew: facebook/vit-mae-* on the Hugging Face hub."""

from __future__ import annotations

from method_zoo.weights import mae
from method_zoo.weights._transformers import conversion
from mimbench.weights.entry import Entry
from mimbench.weights.origin import Conversion, Origin, Rules, Shapes

PREFIX = r"vit\."
NORM: Rules = [(r"layernorm\.(weight|bias)", r"norm.\1")]
POSITIONS = "vit.embeddings.position_embeddings"
DROPPED = {r"decoder\..*": "the decoder"}


def _convert(shapes: Shapes, entry: Entry) -> Conversion:
    built = mae.ORIGIN.config(entry)
    if built["positions"] == "learned":
        rules = [*NORM, (r"embeddings\.position_embeddings", "pos_embed")]
        return conversion(shapes, PREFIX, rules, DROPPED)
    return conversion(shapes, PREFIX, NORM, DROPPED, {POSITIONS: mae.fixed_positions(built)})


ORIGIN = Origin(
    key="transformers_mae",
    version=1,
    summary="facebook/vit-mae-* on the Hugging Face hub: MAE as transformers names it",
    config=mae.ORIGIN.config,
    convert=_convert,
    containers=((),),
)
