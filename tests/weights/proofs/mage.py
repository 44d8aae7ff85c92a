"""MAGE's layout: against its tokenizer and its encoder written anew."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.weights.proof import Proof, small

from ._pyramids import State, block, block_shapes, norm, randomised

WIDTHS, DIM, CODES = (32, 32, 64, 64, 128), 16, 40
TOKENIZER = {"vocabulary": CODES, "width": 32, "blocks": 2, "dim": DIM}
SIZES = {"embed_dim": 48, "depth": 3, "num_heads": 3, "mlp_ratio": 2.0}
Shapes = dict[str, tuple[int, ...]]


def res_block(state: State, name: str, x: Tensor) -> Tensor:
    y = x
    for i in (1, 2):
        y = F.group_norm(y, 32, state[f"{name}.norm{i}.weight"], state[f"{name}.norm{i}.bias"], 1e-6)
        y = F.conv2d(y * y.sigmoid(), state[f"{name}.conv{i}.weight"], padding=1)
    shortcut = state.get(f"{name}.nin_shortcut.weight")
    return y + (x if shortcut is None else F.conv2d(y, shortcut))


def codes_of(state: State, images: Tensor) -> Tensor:
    """``VQModel.encode``'s ids, [B, N]."""
    name = "vqgan.encoder"
    x = F.conv2d(images, state[f"{name}.conv_in.weight"], padding=1)
    for level in range(len(WIDTHS)):
        for i in range(2):
            x = res_block(state, f"{name}.down.{level}.block.{i}", x)
        if level < len(WIDTHS) - 1:
            x = F.avg_pool2d(x, 2)
    for i in (1, 2):
        x = res_block(state, f"{name}.mid.block_{i}", x)
    x = F.group_norm(x, 32, state[f"{name}.norm_out.weight"], state[f"{name}.norm_out.bias"], 1e-6)
    x = F.conv2d(x * x.sigmoid(), state[f"{name}.conv_out.weight"], state[f"{name}.conv_out.bias"])
    return torch.cdist(x.flatten(2).mT, state["vqgan.quantize.embedding.weight"]).argmin(-1)


def encoded(state: State, ids: Tensor, heads: int = 3) -> Tensor:
    """``VisionTransformerMage``'s tokens through its norm, class token first."""
    words = F.pad(ids, (1, 0), value=CODES + 76)  # ``fake_class_label``
    x = state["token_emb.word_embeddings.weight"][words] + state["token_emb.position_embeddings.weight"]
    x = norm(state, "token_emb.LayerNorm", x)
    for i in range(SIZES["depth"]):
        x = block(state, f"blocks.{i}", x, heads)
    return norm(state, "norm", x)


def block_of(name: str, inputs: int, outputs: int) -> Shapes:
    found: Shapes = {f"{name}.conv1.weight": (outputs, inputs, 3, 3)}
    found[f"{name}.conv2.weight"] = (outputs, outputs, 3, 3)
    for i, width in ((1, inputs), (2, outputs)):
        found |= {f"{name}.norm{i}.{part}": (width,) for part in ("weight", "bias")}
    if inputs != outputs:
        found[f"{name}.nin_shortcut.weight"] = (outputs, outputs, 1, 1)
    return found


def tokenizer_shapes() -> Shapes:
    """Names and shapes of the VQGAN, with a sample of its decoder's."""
    found: Shapes = {"encoder.conv_in.weight": (WIDTHS[0], 3, 3, 3)}
    inputs = WIDTHS[0]
    for level, width in enumerate(WIDTHS):
        for i in range(2):
            found |= block_of(f"encoder.down.{level}.block.{i}", inputs, width)
            inputs = width
    for i in (1, 2):
        found |= block_of(f"encoder.mid.block_{i}", inputs, inputs)
    found |= {f"encoder.norm_out.{part}": (inputs,) for part in ("weight", "bias")}
    found |= {"encoder.conv_out.weight": (DIM, inputs, 1, 1), "encoder.conv_out.bias": (DIM,)}
    found |= {"quantize.embedding.weight": (CODES, DIM), "decoder.conv_in.weight": (inputs, DIM, 3, 3)}
    found |= block_of("decoder.mid.block_1", 32, 32) | block_of("decoder.up.3.block.0", 32, 64)
    found |= {"decoder.up.3.upsample.conv.bias": (64,), "decoder.conv_out.bias": (3,)}
    return {f"vqgan.{name}": shape for name, shape in found.items()}


def official() -> dict[str, Tensor]:
    """A file for images of 64 pixels, all weights drawn."""
    width, places = SIZES["embed_dim"], 17
    shapes = tokenizer_shapes() | {
        "token_emb.word_embeddings.weight": (CODES + 1001, width),
        "token_emb.position_embeddings.weight": (places, width),
        "cls_token": (1, 1, width),
        "mask_token": (1, 1, width),
        "pos_embed": (1, places, width),
        "patch_embed.proj.weight": (width, 3, 16, 16),
        "patch_embed.proj.bias": (width,),
        "decoder_pos_embed_learned": (1, places, width),
        "mlm_layer.fc.weight": (width, width),
        "mlm_layer.bias": (1, 1, CODES + 1001),
    }
    for name in ("norm", "token_emb.LayerNorm", "mlm_layer.ln", "decoder_norm"):
        shapes |= {f"{name}.{part}": (width,) for part in ("weight", "bias")}
    for i in range(SIZES["depth"]):
        shapes |= block_shapes(f"blocks.{i}", width, 2 * width)
    state = randomised({name: torch.empty(shape) for name, shape in shapes.items()}, fixed="(none)")
    return state | {"token_emb.position_ids": torch.arange(places).unsqueeze(0)}


def whole_images() -> Proof:
    state = official()
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)).double()
    ids = codes_of(state, images)
    assert len(ids.unique()) > 8, "codes so few that a wrong tokenizer would give them too"
    tokens = encoded(state, ids)
    options = SIZES | {"tokenizer": {"method": "vqgan", "config": TOKENIZER}}
    entry = small("mage@vit_base", image_size=64, options=options)
    return Proof(entry, {"model": state}, images, tokens[:, 0], tokens[:, 1:], "MAGE's code, written anew")


PROOFS = {"whole images": whole_images}
