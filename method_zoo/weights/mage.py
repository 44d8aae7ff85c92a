"""Files in the layout of MAGE's code: an encoder of tokens, and the VQGAN that gives them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from method_zoo.weights.mae import BLOCK
from method_zoo.weights.mae import DROPPED as DECODER
from mimbench.weights.entry import Entry
from mimbench.weights.origin import Conversion, Made, Origin, Shapes, config, renamed

WORDS = "token_emb.word_embeddings.weight"
PLACES = "token_emb.position_embeddings.weight"
CLASS = 76  # which of the words behind those of the codes is the class token's, in the official code
TENSOR = r"(weight|bias)"
TOKENIZER = "tokenizer.networks.tokenizer"
CONVS = r"(?:(?:down|up)\.\d+\.block\.\d+|mid\.block_[12])\.(?:norm[12]|conv[12]|nin_shortcut)"
RULES = [
    BLOCK,
    (rf"norm\.{TENSOR}", r"norm.\1"),
    (rf"token_emb\.LayerNorm\.{TENSOR}", r"embed_norm.\1"),
    (rf"vqgan\.(encoder\.(?:conv_in|norm_out|conv_out|{CONVS})\.{TENSOR})", rf"{TOKENIZER}.\1"),
    (r"vqgan\.(quantize\.embedding\.weight)", rf"{TOKENIZER}.\1"),
]
UNREAD = "inherited from MAE's code and never read"
DROPPED = {
    **DECODER,
    r"cls_token|pos_embed|patch_embed\.proj\.(weight|bias)": UNREAD,
    r"mlm_layer\.(bias|(fc|ln)\.(weight|bias))": "the head on the decoder's tokens",
    r"token_emb\.position_ids": "computed",
    rf"vqgan\.decoder\.(conv_in|norm_out|conv_out|up\.\d+\.upsample\.conv|{CONVS})\.(weight|bias)": (
        "the tokenizer's decoder"
    ),
}


def _config(entry: Entry) -> dict[str, Any]:
    tokenizer = {"method": "vqgan", "config": {}}
    return config(entry, **{"positions": "none", "init": "mae", "tokenizer": tokenizer, **entry.options})


def _convert(shapes: Shapes, entry: Entry) -> Conversion:
    found = renamed(shapes, RULES, DROPPED)
    codes = shapes["vqgan.quantize.embedding.weight"][0]
    made = {
        **found.made,
        "words.weight": Made((WORDS,), _words(codes)),
        "pos_embed": Made((PLACES,), lambda table: table.unsqueeze(0)),
    }
    return Conversion(made, found.dropped)


def _words(codes: int) -> Callable[[Tensor], Tensor]:
    """The codes' words, that of the class token and that of the mask, which is the last of all.

    The others are of the 1000 classes, of which the official code reads none but the one.
    """
    return lambda words: torch.cat([words[:codes], words[codes + CLASS, None], words[-1:]])


ORIGIN = Origin(
    key="mage",
    version=1,
    summary="LTH14/mage: an encoder of tokens, the VQGAN that gives them among its tensors",
    config=_config,
    convert=_convert,
    containers=(("model",), ()),
)
