"""Small networks between an encoder's features and a contrastive or predictive loss."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from method_zoo.backbones.blocks import LayerNorm
from method_zoo.parts.collective import BatchNorm1d

Norm = Literal["batch", "layer", "none"]
Activation = Literal["relu", "gelu"]


def mlp_head(
    widths: Sequence[int],
    *,
    norm: Norm = "batch",
    activation: Activation = "relu",
    hidden_bias: bool = True,
    last_bias: bool = True,
    last_norm: bool = False,
    eps: float = 1e-5,
    running_statistics: bool = False,
) -> nn.Sequential:
    """Linear layers with a norm and an activation between them: projectors and predictors.

    widths: of the input, the hidden layers and the output. last_norm: a batch norm without gain and bias
    on the output, as SimCLR's code has (arXiv:2002.05709). eps: the batch norms'. running_statistics:
    whether batch norms in eval mode normalise by averages over past batches; without, they always use
    the batch they see, which is what a momentum teacher left in training mode does (MoCo v3,
    arXiv:2104.02057). Statistics are over the batches of all processes.

    Weights are as torch initialises them. Input and output [B, widths[0]] and [B, widths[-1]].
    """

    def batch_norm(width: int, affine: bool) -> nn.Module:
        return BatchNorm1d(width, eps=eps, affine=affine, track_running_stats=running_statistics)

    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(pairwise(widths), start=1):
        last = i == len(widths) - 1
        layers.append(nn.Linear(before, after, bias=last_bias if last else hidden_bias))
        if last:
            layers += [batch_norm(after, affine=False)] * last_norm
            continue
        if norm != "none":
            layers.append(batch_norm(after, affine=True) if norm == "batch" else LayerNorm(after))
        layers.append(nn.ReLU() if activation == "relu" else nn.GELU())
    return nn.Sequential(*layers)


class TokenBatchNorm(BatchNorm1d):
    """Batch norm over all tokens of all images, [B, T, D], in place of a transformer's layer norms.

    Always by the statistics of the batch it sees, in float32 at least.
    """

    def __init__(self, dim: int, **kwargs: Any):
        super().__init__(dim, track_running_stats=False, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
            return super().forward(wide.transpose(1, 2)).transpose(1, 2)
