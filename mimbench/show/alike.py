"""How alike the layers of several encoders are, by linear CKA of the same images' features."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from matplotlib import colormaps
from torch import Tensor

from mimbench.data import Dataset
from mimbench.data.transforms import EvalTransform
from mimbench.geometry import linear_cka
from mimbench.progress import Progress
from mimbench.protocol import sampled
from mimbench.show.panels import Panel, Sheet, file_name
from mimbench.show.rows import TrainedRow, jobs_of

IMAGES = 512
BATCH = 64
PIXELS = 240  # of a panel's side, so that cells have sharp edges


def sheet(rows: Sequence[TrainedRow], data: Dataset, report: Callable[[Progress], None]) -> Sheet:
    """A matrix of CKA of all layers with all layers, for each pair of rows."""
    features = [_layers(row, data, report) for row in rows]
    panels = tuple(tuple(_panel(own, other) for other in features) for own in features)
    names = [row.name for row in rows]
    note = (
        f"Linear CKA of the blocks' mean patch tokens on {min(IMAGES, len(data.validation))} validation "
        "images: dark 0, bright 1. Down: blocks of the row's method, first on top; across: of the column's. "
        f"Rows from above: {', '.join(names)}."
    )
    name = file_name("cka", *names)[:120]
    title, source = "how alike layers are (linear CKA)", (data.name, data.fingerprint)
    return Sheet(name, title, tuple(names), panels, note, jobs=jobs_of(rows), data=source)


def matrix(own: Sequence[Tensor], other: Sequence[Tensor]) -> np.ndarray:
    """CKA of each layer's features [N, D] with each, [layers, layers]."""
    return np.array([[linear_cka(a, b) for b in other] for a in own])


def _panel(own: Sequence[Tensor], other: Sequence[Tensor]) -> Panel:
    found = matrix(own, other)
    heights, widths = (np.arange(PIXELS) * n // PIXELS for n in found.shape)
    colours = (255 * colormaps["magma"](found[heights][:, widths])[..., :3]).astype(np.uint8)
    return Panel(colours, f"last with last {found[-1, -1]:.2f}")


def _layers(row: TrainedRow, data: Dataset, report: Callable[[Progress], None]) -> list[Tensor]:
    """The mean patch token of each block, [N, D], as it left it."""
    encoder = row.encoder()
    transform = EvalTransform(encoder.image_size, data.defaults.crop_pct)
    places = sampled(len(data.validation), IMAGES)
    layers = tuple(range(-encoder.depth, 0))
    found: list[list[Tensor]] = [[] for _ in layers]
    for first in range(0, len(places), BATCH):
        report(Progress(stage=f"looking at layers of {row.name}", done=first / len(places)))
        images = [transform(data.validation.image(i)) for i in places[first : first + BATCH]]
        for own, tokens in zip(found, encoder.tokens(torch.stack(images), layers, "raw"), strict=True):
            own.append(tokens.patches.flatten(1, 2).mean(1))
    return [torch.cat(own) for own in found]
