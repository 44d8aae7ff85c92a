"""MaskFeat."""

from __future__ import annotations

from method_zoo.maskfeat import MaskFeat
from mimbench.method import Losses

from ..adapter import Adapter, Config, assert_same_output, vit
from ..records import Official


def _build(config: Config) -> MaskFeat:
    cells = config["patch_size"] // config["cell"]
    return MaskFeat(vit(config, **MaskFeat.card.backbone), bins=config["nbins"], cells_per_patch=cells)


def _losses(method: MaskFeat, run: Official) -> Losses:
    return method.losses(run.inputs["img"], run.inputs["mask"].bool().flatten(1))


def _check(method: MaskFeat, run: Official) -> None:
    hidden = run.inputs["mask"].bool().flatten(1)
    assert_same_output(method.targets(run.inputs["img"])[hidden], run.outputs["label"], run.tolerance)


ADAPTER = Adapter(
    build=_build,
    losses=_losses,
    rules=lambda config: [
        (r"head\.", "model/pred_head.projections.0."),
        (r"encoder\.norm\.", "model/pred_head.transforms.0.0."),
        (r"encoder\.", "model/"),
    ],
    unused=r"^model/hogs\.",
    check=_check,
)
