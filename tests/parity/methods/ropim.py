"""ROPIM."""

from __future__ import annotations

import torch

from method_zoo.ropim import ROPIM
from mimbench.method import Losses

from ..adapter import Adapter, Config, Rules, vit
from ..records import Official
from ._shared import beit_encoder_rules, beit_options


def _build(config: Config) -> ROPIM:
    backbone = vit(config, **{**ROPIM.card.backbone, **beit_options(config)})
    return ROPIM(backbone, sketch_ratio=config["sketch_ratio"])


def _losses(method: ROPIM, run: Official) -> Losses:
    return method.losses(run.inputs["img"], run.inputs["sketch"])


def _rules(config: Config) -> Rules:
    # The official head is a 1 x 1 convolution: the same numbers in the same order.
    return [*beit_encoder_rules(config, "model/encoder."), (r"head\.", "model/decoder.0.")]


def _check(method: ROPIM, run: Official) -> None:
    """What we draw are projections such as the official ones."""
    theirs = run.inputs["sketch"].float()
    ours = method.projection(torch.arange(len(theirs)))
    for projections in (ours, theirs):
        assert torch.equal(projections, projections.transpose(1, 2))
        # Multiples of projections: P² = (ratio · patches in a bin) · P.
        factor = method.ratio * projections.shape[1] / method.bins
        torch.testing.assert_close(projections @ projections, factor * projections, rtol=1e-3, atol=1e-6)
    # Full records hold them in half precision.
    for of in (lambda p: p.diagonal(dim1=1, dim2=2), lambda p: p.abs().sum(2)):
        torch.testing.assert_close(of(ours), of(theirs), rtol=1e-3, atol=0)


ADAPTER = Adapter(
    build=_build,
    losses=_losses,
    rules=_rules,
    unused=r"relative_position_index$",
    check=_check,
)
