"""MaskAlign."""

from __future__ import annotations

from method_zoo.maskalign import MaskAlign
from method_zoo.parts.masking import mask_from_scores
from mimbench.method import Losses

from ..adapter import Adapter, Config, Rules, vit
from ..records import Official
from ._shared import GivenTeacher, kept_first


def _top_layers(config: Config) -> int:
    weights = config["loss_weights"]
    return config["teacher_depth"] if weights == "mean" else int(weights.removeprefix("top"))


def _build(config: Config) -> MaskAlign:
    return MaskAlign(
        vit(config, **MaskAlign.card.backbone),
        teacher=GivenTeacher(config["teacher_dim"], config["teacher_depth"]),
        mask_ratio=config["mask_ratio"],
        masking=config["mask_type"],
        top_layers=_top_layers(config),
        fusion=config["fusion_type"],
        normalise=config["target_norm"],
        loss={"smoothl1": "smooth_l1"}.get(config["loss_type"], config["loss_type"]),
        head=config["head_type"],
    )


def _losses(method: MaskAlign, run: Official) -> Losses:
    (drawn,) = run.draws
    n_hidden = method.masking.hidden_cells(method.encoder.grid)
    if method.attentive is None:  # noise, of which the smallest is kept
        mask = mask_from_scores(drawn, n_hidden)
    else:  # an order in which patches were drawn
        mask = kept_first(drawn, drawn.shape[1] - n_hidden)
    states = run.inputs["hidden_states"][-method.aligned :]
    return method.losses(run.inputs["img"], mask, [(state[:, 0], state[:, 1:]) for state in states])


def _rules(config: Config) -> Rules:
    first = config["teacher_depth"] - _top_layers(config)
    return [
        (r"encoder\.", "model/"),
        (r"layer_weights", "model/distill_weights"),
        *((rf"adaptors\.{i}\.", f"model/distill_heads.{first + i}.") for i in range(_top_layers(config))),
    ]


def _unused(config: Config) -> str:
    """Fixed tables; adaptors of the blocks that get no weight in the loss."""
    left_out = range(config["teacher_depth"] - _top_layers(config))
    return "|".join([r"pos_embed$", *(rf"distill_heads\.{i}\." for i in left_out)])


ADAPTER = Adapter(build=_build, losses=_losses, rules=_rules, unused=_unused)
