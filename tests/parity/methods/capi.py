"""CAPI."""

from __future__ import annotations

import torch
from torch import Tensor

from method_zoo.backbones import build
from method_zoo.capi import CAPI
from mimbench.method import Losses

from ..adapter import Adapter, Config, Rules, assert_same_output
from ..records import Official


def _build(config: Config) -> CAPI:
    common = config["transformers_kwargs"]
    backbone = build(
        f"vit_base_patch{config['patch_size']}",
        6 * config["patch_size"],  # of the images in all records
        **CAPI.card.backbone
        | {
            "embed_dim": common["embed_dim"],
            "depth": config["encoder_kwargs"]["depth"],
            "num_heads": common["block_kwargs"]["attn_kwargs"]["num_heads"],
            "registers": config["n_registers"],
            "drop_path": common["drop_path_rate"],
        },
    )
    return CAPI(
        backbone,
        mask_ratio=config["mask_ratio"],
        roll=config["inverse_block_roll"],
        predicted_share=config["prediction_subsampling"],
        clusters=config["num_clusters"],
        predictor_depth=config["decoder_kwargs"]["depth"],
        student_temp=config["student_temp"],
        target_temp=config["target_temp"],
        cluster_temp=config["pred_temp"],
        balance_rounds=config["n_sk_iter"],
        by_position=config["positionwise_sk"],
    )


def _index(method: CAPI, run: Official) -> Tensor:
    """Predicted patches of each image: official indices count over the batch."""
    index = run.inputs["predict_indices"].view(-1, method.n_predicted)
    return index % (method.encoder.grid[0] * method.encoder.grid[1])


def _losses(method: CAPI, run: Official) -> Losses:
    images = run.inputs["images"]
    mask = torch.ones(len(images) * method.encoder.grid[0] * method.encoder.grid[1], dtype=torch.bool)
    mask[run.inputs["visible_indices"]] = False
    mask = mask.view(len(images), -1)
    assert torch.equal(mask.sum(1), torch.full((len(images),), method.masking.n_hidden(method.encoder.grid)))
    assert mask.gather(1, _index(method, run)).all()
    return method.losses(images, mask, _index(method, run))


def _rules(config: Config) -> Rules:
    block = [
        (r"norm(\d)\.", r"residual\1.norm."),
        (r"attn\.([qkv])\.", r"residual1.fn.\1_proj."),
        (r"attn\.proj\.", r"residual1.fn.proj."),
        (r"mlp\.", r"residual2.fn."),
    ]
    rules = [
        (r"clusters\.", "teacher/head.layer."),
        (r"head\.weight", "student/head.last_layer.weight_v"),
        (r"head\.gain", "student/head.last_layer.weight_g"),
        (r"predictor\.mask_token", "student/backbone.mask_token"),
    ]
    stacks = [("encoder", "student", "encoder"), ("predictor", "student", "decoder")]
    stacks.append((r"teacher\.networks\.encoder", "teacher", "encoder"))
    for ours, module, theirs in stacks:
        official = rf"{module}/backbone.{theirs}.blocks.\1."
        # Each pattern's own group comes second, after the block's number.
        rules += [
            (rf"{ours}\.blocks\.(\d+)\.{part}", official + renamed.replace(r"\1", r"\2"))
            for part, renamed in block
        ]
    for ours, module in (("encoder", "student"), (r"teacher\.networks\.encoder", "teacher")):
        rules.append((rf"{ours}\.register_tokens", f"{module}/backbone.registers"))
        rules.append((rf"{ours}\.patch_embed\.", f"{module}/backbone.patch_embed."))
    return rules


def _check_targets(method: CAPI, run: Official) -> None:
    assignments, _ = method.cluster(run.inputs["images"])
    ours = assignments.gather(1, _index(method, run).unsqueeze(-1).expand(-1, -1, assignments.shape[-1]))
    assert_same_output(ours.flatten(0, 1), run.outputs["targets"])
    for name, official in run.state.items():
        if name.endswith("rope.freqs"):  # full records hold them
            assert torch.equal(method.encoder.rotary.frequencies, official)


ADAPTER = Adapter(
    build=_build,
    losses=_losses,
    rules=_rules,
    # Frequencies are learned in name only, at a rate of zero; nothing reads the average of the decoder.
    unused=r"rope\.freqs$|^teacher/backbone\.(decoder|mask_token)",
    parts={"prediction": "capi_loss", "clustering": "clustering_loss"},
    check=_check_targets,
)
