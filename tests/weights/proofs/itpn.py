"""iTPN's layout: HiViT's encoder written anew, which gives the official predictions through the pyramid."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.weights.proof import Proof, images_of, part, record, small

from ._pyramids import State, block, block_shapes, decoded, filled, linear, norm, shown
from .hivit import SIZES, Shapes, drawn, encoded, shapes

SAID = "iTPN.forward_features of the official code without its pyramid, written anew"


def split(state: State, name: str, x: Tensor) -> Tensor:
    """Cells [B, n, H, W, D] of half the side."""
    y = linear(state, f"{name}.reduction", norm(state, f"{name}.norm", x)).unflatten(4, (2, 2, -1))
    return y.transpose(3, 4).flatten(4, 5).flatten(2, 3)  # [B, n, H, 2, W, 2, D] before


def pyramid(state: State, x: Tensor, cells: list[Tensor]) -> list[Tensor]:
    """Feature maps of patches, halves and fourths of patches, each [B, n, side, side, D]."""
    x = x[:, :, None, None]
    outs = [linear(state, "align_dim_16tofpn", x)]
    for name, finer in (("16to8", cells[1]), ("8to4", cells[0])):
        x = split(state, f"split_{name}", x) + linear(state, f"align_dim_{name}", finer)
        x = block(state, f"block_{name}.0", x, 1)
        outs.append(x)
    return [block(state, f"fpn_modules.{i}", out, 1) for i, out in enumerate(outs)]


def shifted(positions: Tensor, side: int) -> Tensor:
    """What the official pre-training adds.

    Under a mask it takes the image for one of another size and resizes its positions, to the same size, by a
    rule that shifts them a little.
    """
    grid, scale = positions.unflatten(1, (side, side)).permute(0, 3, 1, 2), (side + 0.1) / side
    return F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic").flatten(2).mT


def of_record() -> Proof:
    """The official run's images without its mask, its prediction with it having been found again."""
    run = record("itpn", "")
    state, config, images = part(run, "model"), run.config, run.inputs["img"]
    mask = run.outputs["mask"]
    kept, n = shown(mask), mask.shape[1]
    pre_trained = state | {"absolute_pos_embed": shifted(state["absolute_pos_embed"], round(n**0.5))}
    x, cells = encoded(pre_trained, images, config["num_heads"], kept)
    y = state["decoder_pos_embed"]
    for i, out in enumerate(pyramid(state, x, cells)):
        level = linear(state, f"decoder_embed.{i}.1", norm(state, f"decoder_embed.{i}.0", out))
        y = y + filled(level.flatten(2), kept, state["mask_token"][0], n)
    predicted = decoded(state, y, config["decoder_num_heads"])
    torch.testing.assert_close(predicted, run.outputs["pred"].double(), rtol=1e-5, atol=2e-6)
    sizes = {k: config[k] for k in ("embed_dim", "num_heads", "mlp_ratio", "depth")}
    sizes |= {"stem_mlp_ratio": config["bridge_mlp_ratio"], "stem_depth": config["mlp_depth"]}
    entry = small("itpn@itpn_base", image_size=config["img_size"], options=sizes)
    return Proof(entry, {"model": state}, images, None, encoded(state, images, config["num_heads"])[0], SAID)


def neck(dim: int, fpn: int) -> Shapes:
    """Names and shapes of the feature pyramid and what both codes have behind it."""
    found: Shapes = {
        "align_dim_16tofpn.weight": (fpn, dim),
        "align_dim_16tofpn.bias": (fpn,),
        "align_dim_16to8.weight": (fpn, dim // 2),
        "align_dim_8to4.weight": (fpn, dim // 4),
        "mask_token": (1, 1, dim),
        "decoder_embed.0.0.weight": (fpn,),
        "decoder_embed.0.1.bias": (dim,),
    }
    for name, width in (("16to8", dim), ("8to4", fpn)):
        found |= {f"split_{name}.norm.{part}": (width,) for part in ("weight", "bias")}
        found |= {f"split_{name}.reduction.weight": (4 * fpn, width)}
        found |= block_shapes(f"block_{name}.0", fpn, 4 * fpn, attends=False)
    for i in range(3):
        found |= block_shapes(f"fpn_modules.{i}", fpn, 4 * fpn, attends=False)
    return found


def clip(biases: str) -> Proof:
    """A file taught by CLIP. biases: one for queries, keys and values, or one each for queries and values."""
    wanted = shapes(32, 2, stem=2, depth=3, patches=9, scaled=True) | neck(32, 24)
    for name in ("cls_pt_layers.0", "cls_pt_layers.1"):
        wanted |= block_shapes(name, 32, 64) | {f"{name}.gamma_{branch}": (32,) for branch in (1, 2)}
        wanted |= {f"{name}.attn.relative_position_bias_table": (25, 2)}
    wanted |= {f"{name}.{part}": (32,) for name in ("norm", "norm_cls") for part in ("weight", "bias")}
    wanted |= {f"{name}.{part}": (20, 32) for name in ("lm_head", "lm_cls_head") for part in ("weight",)}
    wanted |= {f"{name}.bias": (20,) for name in ("lm_head", "lm_cls_head")}
    if biases == "query and value":
        for name in [name for name in wanted if name.endswith("attn.qkv.bias")]:
            del wanted[name]
            wanted |= {name.replace("qkv.bias", f"{part}_bias"): (32,) for part in "qv"}
    state = drawn(wanted) | {"relative_position_index": torch.arange(81).view(9, 9)}
    entry = small("itpn@itpn_base-clip", image_size=48, options=SIZES | {"stem_depth": 2, "depth": 3})
    images = images_of(48)
    return Proof(entry, {"model": state}, images, None, encoded(state, images, 2)[0], SAID)


PROOFS = {
    "pixels": of_record,
    "clip": lambda: clip("one"),
    "clip, biases of queries and values": lambda: clip("query and value"),
}
