"""CMAE."""

from __future__ import annotations

from method_zoo.backbones import build
from method_zoo.cmae import CMAE
from method_zoo.parts.masking import mask_from_scores
from mimbench.method import Losses

from ..adapter import Adapter, Config, Rules
from ..records import Official

BLOCK = [  # mmpretrain's names in a transformer block: ours, theirs
    (r"norm([12])\.", r"ln\1."),
    (r"mlp\.fc1\.", "ffn.layers.0.0."),
    (r"mlp\.fc2\.", "ffn.layers.1."),
    (r"attn\.", "attn."),
]


def _build(config: Config) -> CMAE:
    online, neck, head = config["backbone"]["online"], config["neck"], config["head"]
    arch, pixel = online["arch"], neck["pixel"]
    backbone = build(
        f"vit_base_patch{online['patch_size']}",
        online["img_size"],
        **CMAE.card.backbone,
        embed_dim=arch["embed_dims"],
        depth=arch["num_layers"],
        num_heads=arch["num_heads"],
        mlp_ratio=arch["feedforward_channels"] / arch["embed_dims"],
    )
    return CMAE(
        backbone,
        mask_ratio=online["mask_ratio"],
        contrast_weight=head["ct_weight"],
        temperature=head["temperature"],
        decoder_dim=pixel["decoder_embed_dim"],
        decoder_depth=pixel["decoder_depth"],
        decoder_heads=pixel["decoder_num_heads"],
        feature_depth=neck["feature"]["decoder_depth"],
        head_hidden=neck["projector"]["hid_channels"],
        head_dim=neck["projector"]["out_channels"],
    )


def _losses(method: CMAE, run: Official) -> Losses:
    (noise,) = run.draws  # of cells; the official code keeps those of the smallest
    rows, columns = (side // method.masking.unit for side in method.encoder.grid)
    hidden = mask_from_scores(noise, method.masking.hidden_cells(method.encoder.grid))
    mask = hidden.view(-1, rows, columns).repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1)
    return method.losses(run.inputs["img"], run.inputs["img_t"], mask)


TABLES = {
    "encoder.pos_embed": "model/backbone.pos_embed",
    "teacher.networks.encoder.pos_embed": "model/target_backbone.pos_embed",
    "pixel_tokens.positions": "model/pixel_decoder.decoder_pos_embed",
    "feature_tokens.positions": "model/feature_decoder.decoder_pos_embed",
}


def _rules(config: Config) -> Rules:
    rules = []
    for ours, theirs in ((r"encoder\.", "backbone."), (r"teacher\.networks\.encoder\.", "target_backbone.")):
        rules += [(rf"{ours}blocks\.(\d+)\.{a}", rf"model/{theirs}layers.\g<1>.{_next(b)}") for a, b in BLOCK]
        rules += [
            (rf"{ours}cls_token", f"model/{theirs}cls_token"),
            (rf"{ours}patch_embed\.proj\.", f"model/{theirs}patch_embed.projection."),
            (rf"{ours}norm\.", f"model/{theirs}ln1."),
        ]
    for kind in ("pixel", "feature"):
        theirs = f"model/{kind}_decoder."
        blocks = rf"{kind}_decoder\.blocks\.(\d+)\."
        rules += [(blocks + a, rf"{theirs}decoder_blocks.\g<1>.{_next(b)}") for a, b in BLOCK]
        rules += [
            (rf"{kind}_tokens\.embed\.", f"{theirs}decoder_embed."),
            (rf"{kind}_tokens\.mask_token", f"{theirs}mask_token"),
            (rf"{kind}_decoder\.norm\.", f"{theirs}ln1."),
            (rf"{kind}_decoder\.head\.", f"{theirs}decoder_pred."),
        ]
    for ours, theirs in (
        (r"projector\.", "projector."),
        (r"teacher\.networks\.projector\.", "target_projector."),
        (r"predictor\.", "head.predictor."),
    ):
        layers = ((0, "fc0"), (1, "bn0"), (3, "fc1"))
        rules += [(rf"{ours}{i}\.", f"model/{theirs}{layer}.") for i, layer in layers]
    return rules


def _next(replacement: str) -> str:
    """A replacement whose groups come after another group."""
    return replacement.replace("\\1", "\\2")


ADAPTER = Adapter(
    build=_build,
    losses=_losses,
    rules=_rules,
    # Fixed tables; averages over batches, which no loss reads.
    unused=r"pos_embed$|\.running_(mean|var)$|\.num_batches_tracked$",
    tables=TABLES,
    extra=r"teacher\.networks\.encoder\.norm\.",
    parts={"reconstruction": "loss_rc", "contrast": "loss_ct"},
)
