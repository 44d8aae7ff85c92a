"""Learning rates that fall towards the first layers of the backbone, as mmengine builds optimisers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from mimbench.openmm.prepare import prepare

import mimbench.torchvision_compat  # noqa: F401  isort: skip
from timm.models import group_parameters

prepare()

from mmengine.model import is_model_wrapper  # noqa: E402
from mmengine.optim import OptimWrapper  # noqa: E402
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS  # noqa: E402


@OPTIM_WRAPPER_CONSTRUCTORS.register_module(name="MimbenchLayerDecay")
class LayerDecay:
    """Parameter groups of BEiT's layer-wise decay (arXiv:2106.08254), by the backbone's ``group_matcher``.

    The lr of embeddings is ``layer_decay`` ^ (depth + 1) of the base, of block i (from 0) ^ (depth - i), of
    all else the base itself, as in ViTDet's and BEiT's code; the blocks of a stem that come before count on.
    Parameters of one dimension, and those the backbone names, have no weight decay.

    paramwise_cfg: ``layer_decay``.
    """

    def __init__(self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any]):
        self.wrapper = optim_wrapper_cfg
        self.layer_decay = paramwise_cfg["layer_decay"]

    def __call__(self, model: nn.Module) -> OptimWrapper:
        wrapper = dict(self.wrapper)
        optimizer = dict(wrapper.pop("optimizer"))
        if is_model_wrapper(model):
            model = model.module
        groups = parameter_groups(
            model, optimizer["lr"], optimizer.get("weight_decay", 0.0), self.layer_decay
        )
        wrapper["optimizer"] = OPTIMIZERS.build({**optimizer, "params": groups})
        return OPTIM_WRAPPERS.build(wrapper)


HEAD = "(a head)"  # the name of a parameter that no backbone has


class _Headed(nn.Module):
    """Names of a backbone's parameters and of one behind it, which is of the last layer."""

    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body

    def named_parameters(self, *args: Any, **options: Any) -> Iterator[tuple[str, nn.Parameter]]:
        yield from self.body.named_parameters()
        yield HEAD, nn.Parameter()


def parameter_groups(
    model: nn.Module, lr: float, weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    """Groups for an optimiser, the parameters of each with the same lr and weight decay.

    The backbone is ``model.backbone.body``; what needs no gradient is left out.
    """
    body = model.backbone.body
    layers = group_parameters(_Headed(body), body.group_matcher(coarse=False), reverse=True)
    undecayed = body.no_weight_decay()
    inside = {id(parameter): name for name, parameter in body.named_parameters()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        name = inside.get(id(parameter))
        scale = 1.0 if name is None else layer_decay ** (layers[HEAD] - layers[name])
        plain = parameter.ndim <= 1 or name in undecayed
        groups.setdefault((lr * scale, 0.0 if plain else weight_decay), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]
