"""I-JEPA."""

from __future__ import annotations

import torch

from method_zoo.ijepa import IJEPA
from mimbench.method import Losses

from ..adapter import Adapter, Config, Rules, assert_same_output, vit
from ..records import Official


def _build(config: Config) -> IJEPA:
    encoder, predictor = config["encoder"], config["predictor"]
    backbone = vit({**encoder, "img_size": encoder["img_size"][0]}, **IJEPA.card.backbone)
    return IJEPA(
        backbone,
        target_blocks=config["npred"],
        context_blocks=config["nenc"],
        predictor_dim=predictor["predictor_embed_dim"],
        predictor_depth=predictor["depth"],
        predictor_heads=predictor["num_heads"],
    )


def _losses(method: IJEPA, run: Official) -> Losses:
    contexts, targets = (torch.stack(run.inputs[name]) for name in ("masks_enc", "masks_pred"))
    return method.losses(run.inputs["img"], contexts, targets)


def _rules(config: Config) -> Rules:
    return [
        (r"encoder\.", "encoder/"),
        (r"teacher\.networks\.encoder\.", "target/"),
        (r"mask_tokens\.embed\.", "predictor/predictor_embed."),
        (r"mask_tokens\.mask_token", "predictor/mask_token"),
        (r"predictor\.head\.", "predictor/predictor_proj."),
        (r"predictor\.(blocks|norm)\.", r"predictor/predictor_\1."),
    ]


def _check_tensors(method: IJEPA, run: Official) -> None:
    images = run.inputs["img"]
    contexts, targets = (torch.stack(run.inputs[name]) for name in ("masks_enc", "masks_pred"))
    with torch.no_grad():
        # The official order: target block, context block, image.
        predicted = [method.predict(method.seen(images, context), targets) for context in contexts]
        predicted = torch.stack([p.unflatten(0, targets.shape[:2]) for p in predicted], dim=1)
        assert_same_output(predicted.flatten(0, 2), run.outputs["pred"])
        target = method.target(images, targets).unflatten(0, targets.shape[:2])
        target = target.unsqueeze(1).expand(-1, len(contexts), -1, -1, -1)
        assert_same_output(target.flatten(0, 2), run.outputs["target"])


ADAPTER = Adapter(
    build=_build,
    losses=_losses,
    rules=_rules,
    unused=r"pos_embed$",  # fixed tables
    check=_check_tensors,
)
