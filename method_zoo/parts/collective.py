"""What processes must compute together: losses and statistics over all of a batch.

Each function is the identity, or the plain local computation, when there is one process. Gradients flow
through them as if one process had held the whole batch; a loss that every process computes alike from
gathered tensors must not be scaled by their number, because gradients are averaged over processes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process among them."""
    return dist.get_rank() if world_size() > 1 else 0


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        parts = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[rank() * ctx.rows : (rank() + 1) * ctx.rows]


def gathered(x: Tensor) -> Tensor:
    """Rows of all processes, [W·B, ...], in the order of processes; each holds equally many, [B, ...].

    Differentiable: a row's gradient is the sum of what all processes' losses say of it.
    """
    return _Gather.apply(x) if world_size() > 1 else x


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


def summed(x: Tensor) -> Tensor:
    """Sum of ``x`` over processes, differentiable."""
    return _Sum.apply(x) if world_size() > 1 else x


def averaged(x: Tensor) -> Tensor:
    """Mean of ``x`` over processes, differentiable; of equal shares of a batch it is the batch's mean."""
    return summed(x) / world_size()


@torch.no_grad()
def largest(x: Tensor) -> Tensor:
    """Largest value of each element of ``x`` over processes; no gradient."""
    if world_size() > 1:
        x = x.clone()
        dist.all_reduce(x, op=dist.ReduceOp.MAX)
    return x


class BatchNorm1d(nn.BatchNorm1d):
    """Batch norm whose training statistics are over all processes' rows, on any device.

    torch's own ``SyncBatchNorm`` refuses the CPU. Equal to ``nn.BatchNorm1d`` with one process, which
    uses the statistics of its batch in eval mode too where it tracks none.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, D] or [B, D, L]."""
        by_batch = self.training or not self.track_running_stats
        if not by_batch or world_size() == 1:
            return super().forward(x)
        axes = [0, *range(2, x.ndim)]
        shape = [1, -1] + [1] * (x.ndim - 2)
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        mean = averaged(wide.mean(axes))
        variance = averaged((wide - mean.view(shape)).square().mean(axes))
        if self.track_running_stats:
            self._track(mean.detach(), variance.detach(), x.numel() // x.shape[1] * world_size())
        y = (wide - mean.view(shape)) * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        self.num_batches_tracked.add_(1)
        share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * count / max(count - 1, 1), share)
