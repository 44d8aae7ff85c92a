"""Several crops of one image: their sizes, their augmentations and their draws."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mimbench import rng
from mimbench.encoder import Backbone


def crop_size(backbone: Backbone, share: float) -> int:
    """Side in pixels of a crop that is ``share`` of the training image's, in whole patches, at least one."""
    return max(1, round(share * backbone.grid[0])) * backbone.patch_size


def view_keys(keys: Tensor, views: Sequence[int]) -> Tensor:
    """Keys of several views of each sample one after the other, int64 [V·B]: each view draws on its own."""
    return torch.cat([rng.branch(keys, f"view {view}") for view in views])
