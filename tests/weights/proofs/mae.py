"""MAE's layout: official latents, a whole-image target of dBOT's, timm, and every fork's names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import timm
import torch
from torch import Tensor

from mimbench.weights.entries import find_entry
from mimbench.weights.entry import Entry
from tests.weights.plain import TIMM, Names, random_state, sincos, tokens
from tests.weights.proof import Proof, figure, images_of, part, record, small

SIZES = ("embed_dim", "depth", "num_heads", "mlp_ratio")


def sized(name: str, config: dict[str, Any], **options: Any) -> Entry:
    """A catalogue's entry at the sizes of an official run."""
    backbone = f"vit_base_patch{config['patch_size']}"
    options |= {size: config[size] for size in SIZES}
    return small(name, backbone=backbone, image_size=config["img_size"], options=options)


def official(case: str) -> Proof:
    run = record("mae", case)
    latent = run.outputs["latent"].double()
    return Proof(
        sized("mae@vit_base", run.config),
        {"model": part(run, "model")},
        run.inputs["img"],
        latent[:, 0],
        _in_raster_order(latent[:, 1:], run),
        "MaskedAutoencoderViT.forward_encoder",
        mask=run.outputs["mask"].bool(),
    )


def _in_raster_order(visible: Tensor, run) -> Tensor:
    """The official code leaves visible patches in the order in which they were drawn."""
    places = torch.argsort(run.outputs["ids_restore"], dim=1)[:, : visible.shape[1]]
    return visible.gather(1, places.argsort(1).unsqueeze(-1).expand_as(visible))


def official_whole_images() -> Proof:
    """dBOT's teacher, a file of the stage before, sees whole images; here through its final norm."""
    run = record("dbot", "tln1_nf1")
    target = run.outputs["target"].double()
    return Proof(
        sized("dbot@vit_base", run.config),
        {"model": part(run, "teacher")},
        run.inputs["img"],
        target[:, 0],
        target[:, 1:],
        "dBOT's target before it is normalised",
    )


def whole_images() -> Proof:
    sizes = {"embed_dim": 48, "depth": 3, "num_heads": 3}
    torch.manual_seed(0)
    model = timm.create_model("vit_base_patch16_224.mae", img_size=64, num_classes=0, **sizes).double().eval()
    entry = small("mae@vit_base", image_size=64, options={**sizes, "positions": "learned"})
    images = images_of(64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
        tokens = model.forward_features(images)
    return Proof(
        entry, {"model": model.state_dict()}, images, tokens[:, 0], tokens[:, 1:], "timm's VisionTransformer"
    )


def fork(name: str, case: str, more: tuple[str, ...] = ("decoder_pos_embed",), names: Names = TIMM) -> Proof:
    """A fork's names in the official model of a shipped run, positions and ``more`` put to them.

    more: names that the official file has too; the figures describe trained parameters only.
    """
    run = figure(name.partition("@")[0], case)
    config, entry = run.config.get("student", run.config), find_entry(name)
    side, y_first = config["img_size"] // config["patch_size"], "positions" in entry.options
    state = part(run, "model") | {"pos_embed": sincos(config["embed_dim"], side, y_first=y_first)}
    state |= {official: torch.randn(3) for official in more}
    images = images_of(config["img_size"])
    found = tokens(state, images, config["num_heads"], names)
    sized_entry = sized(name, config)
    return Proof(sized_entry, {"model": state}, images, found[:, 0], found[:, 1:], "the encoder written out")


def as_saved_by_ddp() -> Proof:
    """HPM saves all of the wrapped network, beside the name of its model and its moving average."""
    proof = fork("hpm@vit_base", "rel1_ep0_s20")
    state = proof.content["model"]
    content = {
        "epoch": 800,
        "model": "mae_vit_base_patch16",
        "state_dict": {f"module.{name}": value for name, value in state.items()},
        "ema_state_dict": {name: value + 1 for name, value in state.items()},
    }
    return replace(proof, content=content)


def without_figures(
    name: str, more: dict[str, tuple[int, ...]], container: str, names: Names = TIMM
) -> Proof:
    """A fork of which no official run is shipped; more: shapes by name."""
    sizes = {"embed_dim": 48, "depth": 3, "num_heads": 3}
    state = random_state(48, 3, patch=8, side=4, names=names)
    state |= {official: torch.randn(shape) for official, shape in more.items()}
    images = images_of(32)
    found = tokens(state, images, 3, names)
    entry = small(name, backbone="vit_base_patch8", image_size=32, options=sizes)
    other = {"student": {f"module.{key}": value + 1 for key, value in state.items()}}
    return Proof(
        entry, {container: state, **other}, images, found[:, 0], found[:, 1:], "the encoder written out"
    )


def as_part_of_a_model() -> Proof:
    """MAE-Lite's files have the network as a part of a model, and more heads than its width tells."""
    state = random_state(48, 2, patch=8, side=4)
    images = images_of(32)
    found = tokens(state, images, heads=12)
    entry = small(
        "mae@vit_tiny", backbone="vit_tiny_patch8", image_size=32, options={"embed_dim": 48, "depth": 2}
    )
    state |= {official: torch.randn(shape) for official, shape in MAE_DECODER.items()}
    content = {"model": {f"module.model.{name}": value for name, value in state.items()}}
    return Proof(entry, content, images, found[:, 0], found[:, 1:], "the encoder written out")


MAE_DECODER = {
    "mask_token": (1, 1, 32),
    "decoder_pos_embed": (1, 17, 32),
    "decoder_embed.weight": (32, 48),
    "decoder_blocks.0.attn.qkv.weight": (96, 32),
    "decoder_pred.bias": (192,),
}
CROSSMAE = MAE_DECODER | {"dec_norms.0.weight": (48,), "dec_norms.0.bias": (48,), "wfm.linear.weight": (2, 4)}
LOCALMIM = (
    *(f"decoder.{i}.pos_embed" for i in range(4)),
    *(f"hog_enc.{i}.conv.weight" for i in range(4)),
)
SIAMESE = ("mm_pos_embed", "mm_decoder_pos_embed", "decoder_pos_embed")
CLIP = (
    "clip_model.vision_model.embeddings.position_embedding.weight",
    "clip_model.vision_model.embeddings.position_ids",
)

PROOFS = {
    "normpix": lambda: official("normpix"),
    "rawpix": lambda: official("rawpix"),
    "official whole images": official_whole_images,
    "whole images": whole_images,
    "mae-lite": as_part_of_a_model,
    "hpm": as_saved_by_ddp,
    "dbot": lambda: fork("dbot@vit_base", "tln0_nf1_s20"),
    "localmim": lambda: fork("localmim@vit_base", "default_s20", LOCALMIM, Names(norm="norm.3")),
    "maskalign": lambda: fork("maskalign@vit_base", "default_s20", CLIP),
    "lut": lambda: fork("lut@vit_base", "bn_s20"),
    "sdae": lambda: fork("sdae@vit_base", "shrink12_fold3_s20"),
    "milan": lambda: fork("milan@vit_base", "clip_attn_s20"),
    "droppos": lambda: fork("droppos@vit_base", "default_s20"),
    "deepmim": lambda: fork("deepmim@vit_base", "default_s20"),
    "siameseim": lambda: fork("siameseim@vit_base", "ln0_s20", SIAMESE, Names(norm="")),
    "supmae": lambda: fork("supmae@vit_base", "default_s20"),
    "tinymim": lambda: fork("tinymim@vit_small", "default_s20", more=()),
    "crossmae": lambda: without_figures("crossmae@vit_base", CROSSMAE, "model", Names(norm="")),
    "rcmae": lambda: without_figures("rcmae@vit_base", MAE_DECODER, "teacher"),
}
