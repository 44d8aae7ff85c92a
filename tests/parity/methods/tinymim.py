"""TinyMIM."""

from __future__ import annotations

from method_zoo.parts.teachers import FrozenTeacher
from method_zoo.tinymim import TinyMIM
from mimbench.method import Losses

from ..adapter import Adapter, Config, assert_same_output, vit
from ..records import Official


def _build(config: Config) -> TinyMIM:
    student, wanted = config["student"], config["teacher"]
    backbone = vit(wanted, **TinyMIM.card.backbone)
    # Its images come normalised, where ours would be in [0, 1].
    teacher = FrozenTeacher(backbone, mean=(0.0,) * 3, std=(1.0,) * 3, grid=backbone.grid)
    # The code's last block has the teacher's number of heads in attention too, which no loss sees.
    return TinyMIM(
        vit(student, **TinyMIM.card.backbone),
        teacher=teacher,
        teacher_layer=wanted["intermediate"] / wanted["depth"],
    )


def _losses(method: TinyMIM, run: Official) -> Losses:
    return method.losses(run.inputs["img_student"], method.target(run.inputs["img_teacher"]))


def _check_target(method: TinyMIM, run: Official) -> None:
    target = method.target(run.inputs["img_teacher"])
    assert_same_output(target.query_key.exp(), run.outputs["teacher_qk"])
    assert_same_output(target.value_value.exp(), run.outputs["teacher_vv"])


ADAPTER = Adapter(
    build=_build,
    losses=_losses,
    rules=lambda config: [(r"encoder\.", "model/"), (r"teacher\.backbone\.", "teacher/")],
    unused=r"pos_embed$",  # fixed tables
    parts={"query_key": "qk_loss", "value_value": "vv_loss"},
    check=_check_target,
)
