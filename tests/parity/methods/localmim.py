"""LocalMIM."""

from __future__ import annotations

import torch

from method_zoo.localmim import SCALES, LocalMIM
from method_zoo.parts.masking import mask_from_scores
from mimbench.method import Losses

from ..adapter import Adapter, Config, Rules, assert_same_output, vit
from ..records import Official


def _build(config: Config) -> LocalMIM:
    assert tuple(config["scales"]) == SCALES
    method = LocalMIM(
        vit(config, **LocalMIM.card.backbone),
        mask_ratio=config["mask_ratio"],
        bins=config["hog_nbins"],
        decoder_dim=config["decoder_embed_dim"],
        decoder_depth=config["decoder_depth"],
        decoder_heads=config["decoder_num_heads"],
    )
    assert [layer + config["depth"] for layer in method.layers] == config["taps"]
    return method


def _mask(method: LocalMIM, run: Official) -> torch.Tensor:
    (noise,) = run.draws  # the official code keeps the patches of the smallest noise
    return mask_from_scores(noise, method.masking.hidden_cells(method.encoder.grid))


def _losses(method: LocalMIM, run: Official) -> Losses:
    return method.losses(run.inputs["img"], _mask(method, run))


def _rules(config: Config) -> Rules:
    return [
        (r"norms\.", "model/norm."),
        (r"encoder\.norm\.", "model/norm.3."),
        (r"encoder\.", "model/"),
        (r"decoders\.(\d)\.mask_tokens\.", r"model/decoder.\1."),
        (r"decoders\.(\d)\.decoder\.", r"model/decoder.\1."),
        (r"decoders\.(\d)\.head\.", r"model/decoder.\1.pred."),
    ]


def _check(method: LocalMIM, run: Official) -> None:
    """Masks and targets of each scale are the official ones."""
    outputs, mask = run.outputs, _mask(method, run)
    for k, (scale, ours) in enumerate(zip(SCALES, method.targets(run.inputs["img"]), strict=True)):
        masks = outputs["masks"][k] if "masks" in outputs else outputs[f"masks/{k}"]
        assert_same_output(method.hidden_share(mask, scale).double(), masks)
        target = outputs["target"][k] if "target" in outputs else outputs[f"target/{k}"]
        assert_same_output(ours, target, run.tolerance)


ADAPTER = Adapter(
    build=_build,
    losses=_losses,
    rules=_rules,
    unused=r"pos_embed$|^model/hog_enc\.",
    check=_check,
)
