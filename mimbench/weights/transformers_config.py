"""What a repository of the transformers library holds, as an entry of the catalogue would say it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mimbench.errors import UserError
from mimbench.spec import IMAGENET_MEAN, IMAGENET_STD
from mimbench.weights.entry import Entry
from mimbench.weights.hub import Place

# By ``model_type``: key of the method, origin of the file, token that is read out.
FAMILIES = {
    "vit_mae": ("mae", "transformers_mae", "cls"),
    "beit": ("beit", "transformers_beit", "mean"),
    "vit_msn": ("msn", "transformers_vit", "cls"),
    "dinov2": ("dinov2", "transformers_vit", "cls"),
    "dinov2_with_registers": ("dinov2", "transformers_vit", "cls"),
}


def entry_of(place: Place, config: Mapping[str, Any], images: Mapping[str, Any]) -> Entry:
    """The entry that ``config.json`` and ``preprocessor_config.json`` (empty where there is none) describe.

    Who trained the weights, on what and with which help, nothing there says: as of timm's repositories, the
    most that can be is assumed. Raises UserError for a model of another kind.
    """
    kind = config.get("model_type")
    if kind not in FAMILIES:
        named = kind or ", ".join(config.get("architectures") or ()) or "unknown"
        raise UserError(
            f"{place} is a model of transformers of the kind {named}, and mimbench reads "
            f"{', '.join(FAMILIES)}; if its file has the layout of an entry, fetch it and give it to "
            "mimbench weights convert --as NAME"
        )
    method, origin, token = FAMILIES[kind]
    try:
        width, patch = int(config["hidden_size"]), int(config["patch_size"])
        options: dict[str, Any] = {
            "embed_dim": width,
            "depth": int(config["num_hidden_layers"]),
            "num_heads": int(config["num_attention_heads"]),
            "mlp_ratio": float(
                config["mlp_ratio"] if "mlp_ratio" in config else config["intermediate_size"] / width
            ),
        }
        size = int(config["image_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"config.json of {place} does not say {error}; name another repository") from error
    if kind == "vit_mae":
        options["positions"] = "learned"  # whoever trained it may have done so
    if config.get("use_swiglu_ffn"):
        options["mlp"] = "swiglu"
    if config.get("num_register_tokens"):
        options["registers"] = int(config["num_register_tokens"])
    return Entry(
        name=f"{method}@{place.repo.replace('/', '.').lower()}",
        backbone=f"vit_base_patch{patch}",
        image_size=size,
        options=options,
        origin=origin,
        data="",
        external="labels",
        learned_from="not known",
        page=f"https://huggingface.co/{place.repo}",
        licence="",
        readout={"token": token},  # type: ignore[arg-type]
        mean=tuple(images.get("image_mean") or IMAGENET_MEAN),
        std=tuple(images.get("image_std") or IMAGENET_STD),
        source=f"config.json of {place.repo}",
    )
