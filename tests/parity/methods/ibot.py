"""iBOT."""

from __future__ import annotations

import torch
from torch import nn

from method_zoo.ibot import IBOT
from mimbench.method import Losses

from ..adapter import Adapter, Config, Rules, assert_same_output, vit
from ..records import Official


def _backbone(config: Config) -> nn.Module:
    return vit({**config, "img_size": config["img_size"][0]}, **IBOT.card.backbone)


def _build(config: Config) -> IBOT:
    head = config["head"]
    return IBOT(
        _backbone(config),
        local_crops=config["n_local"],
        local_size=config["local_size"] / config["img_size"][0],
        out_dim=head["out_dim"],
        patch_out_dim=None if config["shared_head"] else config["patch_out_dim"],
        hidden_dim=head["hidden_dim"],
        bottleneck_dim=head["bottleneck_dim"],
        norm_last_layer=head["norm_last_layer"],
        student_temp=config["student_temp"],
        teacher_temp=config["teacher_temp"],
        teacher_temp_start=config["warmup_teacher_temp"],
        # The code's schedule has as many points as epochs of warm-up, the last of them at its end.
        teacher_temp_warmup=config["epoch"] / (2 * (config["warmup_epochs"] - 1)),
        centre_momentum=config["center_momentum"],
    )


def _losses(method: IBOT, run: Official) -> Losses:
    method.class_centre.value.copy_(run.state["loss/center"].flatten())
    method.patch_centre.value.copy_(run.state["loss/center2"].flatten())
    masks = [mask.bool().flatten(1) for mask in run.inputs["masks"]]
    return method.losses(run.inputs["images"], torch.cat(masks), progress=0.5)


def _rules(config: Config) -> Rules:
    rules = []
    for ours, module in (("", "student"), (r"teacher\.networks\.", "teacher")):
        rules += [
            (rf"{ours}encoder\.mask_token", f"{module}/backbone.masked_embed"),
            (rf"{ours}encoder\.", f"{module}/backbone."),
            (rf"{ours}head\.projection\.", f"{module}/head.mlp."),
            (rf"{ours}head\.classes\.weight", f"{module}/head.last_layer.weight_v"),
            (rf"{ours}head\.patches\.weight", f"{module}/head.last_layer2.weight_v"),
        ]
    return rules


def _unused(config: Config) -> str:
    # A shared layer is listed under both of its names; the gains of the last layers are fixed at one.
    tied = r"|last_layer2\." if config["shared_head"] else ""
    return rf"^loss/center|weight_g$|^teacher/backbone\.masked_embed{tied}"


def _check(method: IBOT, run: Official) -> None:
    """Logits of both networks, and where the step moves the centres."""
    crops = run.inputs["images"]
    teacher = method.teacher["encoder"].encode(torch.cat(crops[:2]))
    head = method.teacher["head"]
    assert_same_output(head.of_classes(teacher.cls), run.outputs["teacher_cls"])
    assert_same_output(head.of_patches(head.projection(teacher.patches)), run.outputs["teacher_patch"])
    local = method.encoder.encode(torch.cat(crops[2:])).cls
    assert_same_output(method.head.of_classes(local), run.outputs["student_local_cls"])
    for centre, name in ((method.class_centre, "new_center"), (method.patch_centre, "new_center2")):
        centre.update()
        shape = (1,) * (2 if name == "new_center2" else 1)
        assert_same_output(centre.value.view(*shape, -1), run.outputs[name])


ADAPTER = Adapter(
    build=_build,
    losses=_losses,
    rules=_rules,
    unused=_unused,
    extra=r"teacher\.networks\.encoder\.mask_token",
    parts={"classes": "loss_cls", "patches": "loss_patch"},
    check=_check,
)
