"""Contrastive losses: tell which key belongs to a query. They see no model.

All are InfoNCE (van den Oord et al., 2018, arXiv:1807.03748) on cosines: the cross-entropy of finding a
query's own key among keys by their similarity divided by a temperature. Queries and keys are normalised
here; pass keys in the precision the loss is to be computed in, and detached where they are not to learn.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from method_zoo.parts.collective import gathered, rank


def batch_contrast(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """Find an image's key among those of the batch, over all processes. queries, keys: [B, D].

    The loss of MoCo v3 (arXiv:2104.02057) in one direction, without its factor of 2 · temperature.
    """
    logits = _cosines(queries, gathered(keys)) / temperature
    return F.cross_entropy(logits, _own_rows(queries))


def two_view_contrast(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Find an image's other view among all views of the batch but itself, over all processes.

    first, second: [B, D], a row an image. NT-Xent of SimCLR (Chen et al., 2020, arXiv:2002.05709).
    """
    everyone = torch.cat([gathered(first), gathered(second)])
    logits = _cosines(torch.cat([first, second]), everyone) / temperature
    own = _own_rows(first)
    in_first, in_second = own, own + len(everyone) // 2
    itself = torch.cat([in_first, in_second]).unsqueeze(1)
    logits = logits.scatter(1, itself, float("-inf"))
    return F.cross_entropy(logits, torch.cat([in_second, in_first]))


def patch_contrast(queries: Tensor, keys: Tensor, own: Tensor, temperature: float) -> Tensor:
    """Find a patch's key among the keys of the same image.

    queries: [B, n, D]; keys: [B, N, D]; own: int64 [B, n], which key is each query's.
    """
    logits = _cosines(queries, keys) / temperature
    return F.cross_entropy(logits.flatten(0, 1), own.flatten())


def _cosines(queries: Tensor, keys: Tensor) -> Tensor:
    # Autocast would take the product in half precision, too coarse for exponentials at a low temperature.
    with torch.autocast(queries.device.type, enabled=False):
        return F.normalize(queries.to(keys.dtype), dim=-1) @ F.normalize(keys, dim=-1).transpose(-1, -2)


def _own_rows(x: Tensor) -> Tensor:
    """Where this process's rows lie among those of all processes, int64 [B]."""
    return rank() * len(x) + torch.arange(len(x), device=x.device)
