"""CroCo."""

from __future__ import annotations

from method_zoo.croco import CroCo
from mimbench.method import Losses

from ..adapter import Adapter, Config, Rules, vit
from ..records import Official


def _build(config: Config) -> CroCo:
    encoder = {name: config[f"enc_{name}"] for name in ("embed_dim", "depth", "num_heads")}
    return CroCo(
        vit({**config, **encoder}, **CroCo.card.backbone),
        mask_ratio=config["mask_ratio"],
        norm_reference=config["norm_im2_in_dec"],
        decoder_dim=config["dec_embed_dim"],
        decoder_depth=config["dec_depth"],
        decoder_heads=config["dec_num_heads"],
    )


def _losses(method: CroCo, run: Official) -> Losses:
    # The official code compares the order of the noise, not its rank, with the number to hide.
    mask = run.draws[0].argsort(dim=1) < method.masking.hidden_cells(method.encoder.grid)
    assert (mask == run.outputs["mask"].bool()).all()
    return method.losses(run.inputs["img1"], run.inputs["img2"], mask)


def _rules(config: Config) -> Rules:
    block = r"decoder\.blocks\.(\d+)\."
    return [
        (r"encoder\.(blocks|norm)\.", r"model/enc_\1."),
        (r"encoder\.", "model/"),
        (r"mask_tokens\.embed\.", "model/decoder_embed."),
        (r"mask_tokens\.", "model/"),
        (rf"{block}norm_self\.", r"model/dec_blocks.\1.norm1."),
        (rf"{block}norm_query\.", r"model/dec_blocks.\1.norm2."),
        (rf"{block}norm_key\.", r"model/dec_blocks.\1.norm_y."),
        (rf"{block}norm_mlp\.", r"model/dec_blocks.\1.norm3."),
        (rf"{block}cross\.([qkv])\.", r"model/dec_blocks.\1.cross_attn.proj\2."),
        (rf"{block}cross\.proj\.", r"model/dec_blocks.\1.cross_attn.proj."),
        (rf"{block}(attn|mlp)\.", r"model/dec_blocks.\1.\2."),
        (r"decoder\.norm\.", "model/dec_norm."),
        (r"decoder\.head\.", "model/prediction_head."),
    ]


ADAPTER = Adapter(
    build=_build,
    losses=_losses,
    rules=_rules,
    unused=r"pos_embed$",  # fixed tables
)
