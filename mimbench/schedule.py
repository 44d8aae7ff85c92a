"""Schedules of an optimiser as functions of progress, so that a short run keeps the published shape."""

from __future__ import annotations

import math

from mimbench.spec import Recipe


def learning_rate(recipe: Recipe, batch_size: int, progress: float) -> float:
    """The rate at ``progress`` in [0, 1] of a run with an effective ``batch_size``.

    Linear warm-up from ``warmup_start_lr`` to the peak, then a half cosine down to ``min_lr``
    (Loshchilov & Hutter 2017, arXiv:1608.03983) or tenfold drops at the milestones. ``warmup_start_lr``
    and ``min_lr`` belong to the published batch and scale with the batch as the peak does.
    """
    peak = recipe.lr(batch_size)
    scale = batch_size / recipe.batch_size
    start, lowest = recipe.warmup_start_lr * scale, recipe.min_lr * scale
    if progress < recipe.warmup:
        return start + (peak - start) * progress / recipe.warmup
    if recipe.schedule == "multistep":
        return max(lowest, peak * 0.1 ** sum(progress >= m for m in recipe.milestones))
    done = (progress - recipe.warmup) / (1 - recipe.warmup)
    return lowest + (peak - lowest) * 0.5 * (1 + math.cos(math.pi * done))


def weight_decay(recipe: Recipe, progress: float) -> float:
    """The weight decay at ``progress`` in [0, 1]: DINO's half cosine (arXiv:2104.14294) where it changes."""
    if recipe.weight_decay_end is None:
        return recipe.weight_decay
    rise = 0.5 * (1 - math.cos(math.pi * progress))
    return recipe.weight_decay + rise * (recipe.weight_decay_end - recipe.weight_decay)
