"""CroCo's layout: the encoder written out over an official run's names."""

from __future__ import annotations

from tests.weights.plain import Names, sincos, tokens
from tests.weights.proof import Proof, figure, images_of, part, small

NAMES = Names(
    cls="",
    positions="enc_pos_embed",
    norm1="enc_blocks.{}.norm1",
    qkv="enc_blocks.{}.attn.qkv",
    proj="enc_blocks.{}.attn.proj",
    norm2="enc_blocks.{}.norm2",
    fc1="enc_blocks.{}.mlp.fc1",
    fc2="enc_blocks.{}.mlp.fc2",
    norm="enc_norm",
)


def whole_images(case: str) -> Proof:
    run = figure("croco", case)
    config, state = run.config, part(run, "model")
    side = config["img_size"] // config["patch_size"]
    state["enc_pos_embed"] = sincos(config["enc_embed_dim"], side)[0, 1:]
    state["dec_pos_embed"] = sincos(config["dec_embed_dim"], side)[0, 1:]
    images = images_of(config["img_size"])
    found = tokens(state, images, config["enc_num_heads"], NAMES)
    entry = small(
        "croco@vit_base",
        backbone=f"vit_base_patch{config['patch_size']}",
        image_size=config["img_size"],
        options={size: config[f"enc_{size}"] for size in ("embed_dim", "depth", "num_heads")}
        | {"mlp_ratio": config["mlp_ratio"]},
    )
    content = {"model": state, "croco_kwargs": {"enc_depth": config["enc_depth"]}}
    return Proof(entry, content, images, None, found, "the encoder written out")


PROOFS = {"whole images": lambda: whole_images("default_s20")}
