"""BEiT's relatives against runs of their official code, which hold predictions rather than tokens.

The file is converted with its mask token kept, our encoder sees what theirs saw, and the official head, or
what stands between tokens and the recorded numbers, is applied to our tokens.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mimbench.checkpoint import load_encoder
from mimbench.encoder import Encoded
from mimbench.weights.convert import convert
from tests.parity.adapter import assert_same_output
from tests.parity.records import Official

from .proof import figure, part, record, small
from .proofs._beit import sizes

NORM = 1e-6  # epsilon of the official layer norms
PREDICTION = {"beit": "logits", "beitv2": "logits", "simmim": "z", "data2vec": "pred", "dtm": "pred"}
PREDICTION |= {"eva": "pred", "maskfeat": "pred", "bootmae": "feat_target", "cae": "latent_target"}
ENTRIES = {"dtm": "beit@vit_base", "eva": "eva@vit_giant_patch14"}  # of DTM no file was released
CONTAINERS = {"maskfeat": "model_state"}
# A converted encoder is float32 where figures are of float64 weights; EVA casts queries and keys to float32.
TOLERANCE = 3e-6


def _linear(run: Official, name: str) -> Callable[[Tensor], Tensor]:
    return lambda x: F.linear(x, run.state[f"{name}.weight"], run.state[f"{name}.bias"])


def _predicted(run: Official, seen: Encoded, mask: Tensor) -> Tensor:
    tokens = seen.patches
    if run.method == "simmim":
        return tokens.transpose(1, 2).unflatten(2, (-1, round(tokens.shape[1] ** 0.5)))
    if run.method == "maskfeat":
        norm = [run.state[f"model/pred_head.transforms.0.0.{part}"] for part in ("weight", "bias")]
        tokens = F.layer_norm(tokens, tokens.shape[-1:], *norm, NORM)
        return _linear(run, "model/pred_head.projections.0")(tokens[mask])
    if run.method == "bootmae":
        return seen.layers[0][1]
    if run.method == "cae":
        if "model/encoder_to_regresser.weight" not in run.state:
            return tokens
        tokens = _linear(run, "model/encoder_to_regresser")(tokens)
        norm = [run.state[f"model/encoder_to_regresser_norm.{part}"] for part in ("weight", "bias")]
        return F.layer_norm(tokens, tokens.shape[-1:], *norm, NORM)
    return _linear(run, "model/lm_head")(tokens if run.method == "dtm" else tokens[mask])


def _file(run: Official) -> dict[str, Tensor]:
    """The official state dict that what is recorded was made with."""
    if run.method == "bootmae":  # the moving average
        return part(run, "ema")
    state = part(run, "model")
    if run.method == "cae":  # the encoder's copy, which before the first step has weights of its own
        own = {name: value for name, value in state.items() if name.startswith("alignment_encoder.")}
        state |= {name.replace("alignment_", "", 1): value for name, value in own.items()}
    return state


def _compare(run: Official, folder: Path) -> None:
    config = run.config
    options = sizes(config)
    if {"use_abs_pos_emb", "use_rel_pos_bias", "use_shared_rel_pos_bias"} <= config.keys():
        shared = "shared" if config["use_shared_rel_pos_bias"] else "none"
        options["rel_pos"] = "per_block" if config["use_rel_pos_bias"] else shared
        options["positions"] = "learned" if config["use_abs_pos_emb"] else "none"
        options["layer_scale"] = config["init_values"]
    masked = run.method not in ("bootmae", "cae")
    if masked:
        options["mask_token"] = True
    entry = small(
        ENTRIES.get(run.method, f"{run.method}@vit_base"),
        backbone=f"vit_base_patch{config['patch_size']}",
        image_size=config["img_size"],
        options=options,
    )
    torch.save({CONTAINERS.get(run.method, "model"): _file(run)}, folder / "official.pth")
    converted = convert(folder / "official.pth", entry, folder / "ours.safetensors")
    backbone = load_encoder(converted.path).backbone.double()
    images = run.inputs["img"]
    mask = torch.zeros(len(images), backbone.grid[0] ** 2, dtype=torch.bool)
    if "mask" in run.inputs:
        mask = run.inputs["mask"].bool().flatten(1)
    with torch.no_grad():
        if run.method == "cae":  # sees hidden patches only
            seen = backbone.encode(images, ~mask, fill="drop")
        else:
            seen = backbone.encode(images, mask if masked else None, fill="token", layers=(-1,))
        ours = _predicted(run, seen, mask)
    assert_same_output(ours, run.outputs[PREDICTION[run.method]], TOLERANCE)


FIGURES = [
    ("beit", "sharedrpb_s20"),
    ("beit", "rpb_ape_s20"),
    ("beitv2", "shared0_s20"),
    ("simmim", "vit_s20"),
    ("data2vec", "end_smoothl1_s20"),
    ("dtm", "norm0_s20"),
    ("eva", "default_s20"),
    ("maskfeat", "default_s20"),
    ("bootmae", "wm0_s20"),
    ("cae", "dec48_s20"),
]
RECORDS = [
    ("beit", "sharedrpb"),
    ("beit", "rpb_ape"),
    ("beitv2", "shared1"),
    ("simmim", "vit"),
    ("data2vec", "end_smoothl1"),
    ("dtm", "norm0"),
    ("eva", ""),
    ("maskfeat", ""),
    ("bootmae", "wm0"),
    ("cae", "dec48"),
    ("cae", "dec36"),
]


@pytest.mark.parametrize(("method", "case"), FIGURES)
def test_our_tokens_give_the_official_prediction(method: str, case: str, tmp_path: Path) -> None:
    _compare(figure(method, case), tmp_path)


@pytest.mark.skipif("MIMBENCH_PARITY" not in os.environ, reason="MIMBENCH_PARITY names no official records")
@pytest.mark.parametrize(("method", "case"), RECORDS)
def test_our_tokens_give_the_prediction_of_a_full_record(method: str, case: str, tmp_path: Path) -> None:
    _compare(record(method, case), tmp_path)
