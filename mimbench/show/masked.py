"""What a method hides of images, and what pixels it predicts."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mimbench import rng
from mimbench.data import Dataset
from mimbench.data.transforms import EvalTransform
from mimbench.errors import UserError
from mimbench.method import Crop, Method, Step
from mimbench.show.panels import Panel, Sheet, file_name, spread_over_classes
from mimbench.show.rows import TrainedRow, jobs_of
from mimbench.watching import Seen, watching

HIDDEN = 0.82  # grey of what is hidden, in [0, 1]


def sheet(row: TrainedRow, data: Dataset, count: int, seed: int) -> Sheet:
    """Original, what the encoder is given, and the prediction, of validation images.

    Raises UserError for a method that neither hides nor predicts anything of the image.
    """
    method, size = row.method(data), row.setting.image_size
    if method.card.recipe is None:
        raise UserError(f"{row.name} is never trained: it hides and predicts nothing")
    split = data.validation
    chosen = spread_over_classes(split, count)
    transform = EvalTransform(size, data.defaults.crop_pct)
    images = torch.stack([transform(split.image(i)) for i in chosen]).float() / 255
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (method.card.mean, method.card.std))
    normalised = (images - mean) / std
    seen = _watched(method, normalised, np.array(chosen), seed, data)
    masked = seen.mask is not None and seen.mask.shape[1] == int(np.prod(method.encoder.grid))
    if seen.inputs is None or (not masked and seen.pixels is None and torch.equal(seen.inputs, normalised)):
        raise UserError(f"{row.name} gives its encoder no mask and predicts no pixels: nothing to show")

    given = (seen.inputs[: len(images)] * std + mean).clamp(0, 1)
    if masked:
        assert seen.mask is not None
        given = torch.where(_on_pixels(seen.mask[: len(images)], method.encoder.grid, size), HIDDEN, given)
    columns = [images, given]
    headings = ["image", "what the encoder is given"]
    if seen.pixels is not None:
        predicted = (seen.pixels[: len(images)] * std + mean).clamp(0, 1)
        columns.append(torch.where(predicted.isnan(), images, predicted))
        headings.append("with the pixels it predicts")
    rows = tuple(tuple(Panel(_uint8(column[i])) for column in columns) for i in range(len(images)))
    return Sheet(
        file_name("masked", row.name),
        f"{row.name}: masked input and prediction",
        tuple(headings),
        rows,
        note=_note(method, seen, masked),
        jobs=jobs_of([row]),
        data=(data.name, data.fingerprint),
    )


def _watched(method: Method, images: Tensor, chosen: np.ndarray, seed: int, data: Dataset) -> Seen:
    keys = torch.from_numpy(rng.sample_keys(seed, 0, chosen))
    labels = None
    if method.card.external == "labels" and data.validation.labels is not None:
        labels = torch.from_numpy(data.validation.labels[chosen])
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(len(images), 4)
    still = torch.zeros(len(images), dtype=torch.bool)
    views = [Crop(images, whole, still)] if method.views else []
    for view in method.views:  # of a still picture every crop is the whole
        resized = torch.nn.functional.interpolate(images, view.image_size, mode="bicubic", antialias=True)
        views.append(Crop(resized, whole, still))
    with torch.no_grad(), watching(method) as seen:
        method(images, Step(0.0, keys, labels, tuple(views)))
    return seen


def _on_pixels(mask: Tensor, grid: tuple[int, int], size: int) -> Tensor:
    cells = mask.view(-1, 1, *grid)
    return cells.repeat_interleave(size // grid[0], 2).repeat_interleave(size // grid[1], 3)


def _uint8(image: Tensor) -> np.ndarray:
    return (image.permute(1, 2, 0) * 255).round().byte().numpy()


def _note(method: Method, seen: Seen, masked: bool) -> str:
    told = []
    if masked and seen.mask is not None:
        told.append(f"{float(seen.mask.float().mean()):.0%} of the patches are hidden.")
    if seen.pixels is None:
        told.append(f"It predicts no pixels: its target is {method.card.target}.")
    elif seen.true_statistics:
        told.append(
            "It predicts normalised pixels: the true mean and variance of each patch were put back, so "
            "colours and contrasts of patches are the image's own."
        )
    else:
        told.append("No statistics of the true image were put back.")
    return " ".join(told)
