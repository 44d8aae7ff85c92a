"""DTM."""

from __future__ import annotations

import torch
from torch import Tensor

from method_zoo.dtm import DTM
from mimbench.method import Losses

from ..adapter import Adapter, Config, Rules, assert_same_output, vit
from ..records import Official
from ._shared import GivenTeacher, beit_encoder_rules, beit_options


def _build(config: Config) -> DTM:
    backbone = vit(config, **{**DTM.card.backbone, **beit_options(config)})
    return DTM(
        backbone,
        teacher=GivenTeacher(config["output_dim"]),
        levels=config["L"],
        norm_features=config["normalize_target"],
    )


def _groups(method: DTM, run: Official) -> Tensor:
    features = run.inputs["target_feat"]
    schedule = (torch.tensor(run.config[k]).expand(len(features), -1) for k in ("num_merge", "matching_iter"))
    return method.groups(features, *schedule)


def _losses(method: DTM, run: Official) -> Losses:
    features = run.inputs["target_feat"]
    return method.losses(run.inputs["img"], run.inputs["mask"].bool(), features, _groups(method, run))


def _rules(config: Config) -> Rules:
    return [*beit_encoder_rules(config, "model/"), (r"head\.", "model/lm_head.")]


def _check(method: DTM, run: Official) -> None:
    """The same tokens become one (a row of the official matrix is a group), and the same prediction."""
    held = run.outputs.get("sources") or [run.outputs[f"sources/{i}"] for i in range(run.config["L"])]
    for ours, theirs in zip(_groups(method, run), held, strict=True):
        together = ours.unsqueeze(2) == ours.unsqueeze(1)
        if isinstance(theirs, Tensor):
            theirs = theirs.double()
            assert torch.equal(together, (theirs.transpose(1, 2) @ theirs) > 0)
        else:  # the matrix's statistics tell the number of groups
            assert [len(row.unique()) for row in ours] == [theirs["shape"][1]] * len(ours)
    encoded = method.encoder.encode(run.inputs["img"], run.inputs["mask"].bool(), fill="token")
    assert_same_output(method.head(encoded.patches), run.outputs["pred"])


ADAPTER = Adapter(
    build=_build, losses=_losses, rules=_rules, unused=r"relative_position_index$", check=_check
)
