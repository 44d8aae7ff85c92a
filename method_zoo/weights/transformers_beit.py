"""BEiT's label-free files as the transformers library wrote them anew: microsoft/beit-*-pt22k on the hub.

The final norm is a part of what predicts tokens there.
"""

from __future__ import annotations

from method_zoo.weights import beit
from method_zoo.weights._transformers import LAYER, conversion
from mimbench.weights.entry import Entry
from mimbench.weights.origin import Conversion, Origin, Rules, Shapes

PREFIX = r"(?:beit\.)?"  # of all but the final norm
RULES: Rules = [
    (r"encoder\.relative_position_bias\.(relative_position_bias_table)", r"rel_pos.0.\1"),
    (LAYER + r"lambda_([12])", r"blocks.\1.ls\2.gamma"),
    (LAYER + r"attention\.attention\.query\.bias", r"blocks.\1.attn.qkv.q_bias"),
    (LAYER + r"attention\.attention\.value\.bias", r"blocks.\1.attn.qkv.v_bias"),
    (r"layernorm\.(weight|bias)", r"norm.\1"),
]
DROPPED = {
    r"beit\.embeddings\.mask_token": "stands for hidden patches in pre-training",
    r"lm_head\.(weight|bias)": "the head that predicts tokens",
}
INDEX = "beit.encoder.relative_position_bias.relative_position_index"


def _convert(shapes: Shapes, entry: Entry) -> Conversion:
    tables = beit.index_table(beit.ORIGIN.config(entry), [INDEX] if INDEX in shapes else [])
    return conversion(shapes, PREFIX, RULES, DROPPED, tables)


ORIGIN = Origin(
    key="transformers_beit",
    version=1,
    summary="microsoft/beit-*-pt22k on the Hugging Face hub: BEiT as transformers names it",
    config=beit.ORIGIN.config,
    convert=_convert,
    containers=((),),
)
