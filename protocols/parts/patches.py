"""Images of any shape as an encoder's squares, their patches' tokens, and predictions for every pixel.

An image becomes a canvas that squares of the encoder's input size cover; a square's patches have tokens and,
with the label map laid onto the same canvas, P x P labels each. What is predicted for the patches of all
squares goes back to the annotation's own resolution, where it is scored: masks that were made smaller to
fit the features are a known source of wrong figures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mimbench.data.loading import in_order
from mimbench.data.transforms import resize
from mimbench.outcomes import Overlaps
from mimbench.processes import gathered
from mimbench.progress import Progress
from mimbench.protocol import sampled

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from mimbench.data import Split
    from mimbench.encoder import Encoder
    from mimbench.protocol import Surroundings

# "squash": the whole image resized to one square, whatever its shape, as CAPI (arXiv:2502.08769) does;
# "slide": its short side resized to the square's, squares along the long side two thirds of a side apart.
Fit = Literal["squash", "slide"]
SQUARES = 16  # that go through the encoder at once
NUMBERS = 2**26  # of upsampled scores held at once: 256 MB


@dataclass(frozen=True)
class Canvas:
    """The size an image is resized to, and the top left corners of the squares that cover it."""

    height: int
    width: int
    corners: tuple[tuple[int, int], ...]


def canvas_of(height: int, width: int, side: int, fit: Fit) -> Canvas:
    """The canvas for an image. side: of the squares, in pixels."""
    if fit == "squash":
        return Canvas(side, side, ((0, 0),))
    short = min(height, width)
    tall, wide = (max(side, round(length * side / short)) for length in (height, width))
    corners = tuple((top, left) for top in _starts(tall, side) for left in _starts(wide, side))
    return Canvas(tall, wide, corners)


def _starts(length: int, side: int) -> list[int]:
    """Where squares begin: two thirds of a side apart (341 of 512 pixels, as everybody's sliding inference
    on ADE20K), the last one ending with the image."""
    stride = max(1, side * 2 // 3)
    return [min(i * stride, length - side) for i in range(-(-(length - side) // stride) + 1)]


def laid_out(target: np.ndarray, canvas: Canvas) -> np.ndarray:
    """A label map [H, W] on the canvas [height, width]: each pixel takes the label at its centre."""
    rows, columns = (
        ((np.arange(to) + 0.5) * of / to).astype(np.int64)
        for to, of in zip((canvas.height, canvas.width), target.shape, strict=True)
    )
    return target[rows[:, None], columns]


def label_map(split: Split, index: int) -> np.ndarray:
    """The label map [H, W] of an image of a segmentation set, see ``Split.target``."""
    target = split.target(index)
    assert isinstance(target, np.ndarray), "protocols of segmentation get data of segmentation"
    return target


def ignored(target: np.ndarray) -> int:
    """The number of pixels without an annotation: the highest of the type."""
    return int(np.iinfo(target.dtype).max)


class Seen(NamedTuple):
    """An image as the encoder saw it."""

    number: int  # in its split
    target: np.ndarray  # [H, W], see Split.target
    canvas: Canvas
    labels: Tensor  # int64 [squares, S, S]: the target on each square
    ignore: int
    tokens: dict[int, Tensor]  # by layer: float32 [squares, patches of a square, D], final norm


class _Squares:
    """Indices to images and label maps, resized and cut."""

    def __init__(self, split: Split, side: int, fit: Fit):
        self.split, self.side, self.fit = split, side, fit

    def __getitem__(self, index: int) -> tuple[int, np.ndarray, Canvas, Tensor, Tensor]:
        pixels, target, side = self.split.image(index), label_map(self.split, index), self.side
        canvas = canvas_of(pixels.shape[0], pixels.shape[1], side, self.fit)
        image = resize(pixels, canvas.height, canvas.width)
        labels = torch.from_numpy(laid_out(target, canvas).astype(np.int64))
        places = [(slice(t, t + side), slice(left, left + side)) for t, left in canvas.corners]
        return (
            index,
            target,
            canvas,
            torch.stack([image[:, rows, columns] for rows, columns in places]),
            torch.stack([labels[rows, columns] for rows, columns in places]),
        )


def see(
    encoder: Encoder,
    split: Split,
    layers: Sequence[int],
    fit: Fit,
    around: Surroundings,
    *,
    stage: str,
) -> Iterator[Seen]:
    """This process's share of a split's images, in order: every world-th. Memory: a few images at a time.

    layers: from the end, -1 last.
    """
    rank, world = (around.fabric.global_rank, around.fabric.world_size) if around.fabric else (0, 1)
    mine = range(rank, len(split), world)
    source = _Squares(split, encoder.image_size, fit)
    started, done = time.monotonic(), 0
    waiting: list[Any] = []
    for loaded in in_order(source, lambda: iter(mine), around.workers):
        waiting.append(loaded)
        done += 1
        if done < len(mine) and sum(len(item[3]) for item in waiting) < SQUARES:
            continue
        tokens = _tokens(encoder, torch.cat([item[3] for item in waiting]), layers, around.fabric)
        first = 0
        for index, target, canvas, images, labels in waiting:
            rows = slice(first, first + len(images))
            device = next(iter(tokens.values())).device
            yield Seen(
                index,
                target,
                canvas,
                labels.to(device),
                ignored(target),
                {layer: found[rows] for layer, found in tokens.items()},
            )
            first += len(images)
        waiting = []
        seconds = time.monotonic() - started
        if rank == 0:
            share = done / len(mine)
            left = seconds * (1 - share) / share
            around.report(Progress(stage, share, rate=done * world / seconds, seconds_left=left))


def _tokens(
    encoder: Encoder, images: Tensor, layers: Sequence[int], fabric: Fabric | None
) -> dict[int, Tensor]:
    device = fabric.device if fabric else encoder.mean.device
    encoder.to(device)
    found: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for some in images.split(SQUARES):
        with fabric.autocast() if fabric else nullcontext():
            tokens = encoder.tokens(some.to(device, non_blocking=True), layers)
        for layer, of_layer in zip(layers, tokens, strict=True):
            found[layer].append(of_layer.patches.flatten(1, 2).float())
    return {layer: torch.cat(parts) for layer, parts in found.items()}


def label_patches(labels: Tensor, grid: tuple[int, int]) -> Tensor:
    """Labels [n, S, S] as those of each patch, [n, patches, P·P]; patches and pixels in raster order."""
    n, side, _ = labels.shape
    tall, wide = side // grid[0], side // grid[1]
    cut = labels.view(n, grid[0], tall, grid[1], wide)
    return cut.transpose(2, 3).reshape(n, grid[0] * grid[1], tall * wide)


def pixel_maps(patches: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """``label_patches`` undone, of numbers for each class: [n, patches, C, P·P] -> [n, C, S, S]."""
    n, _, classes, _ = patches.shape
    tall, wide = side // grid[0], side // grid[1]
    cut = patches.view(n, *grid, classes, tall, wide)
    return cut.permute(0, 3, 1, 4, 2, 5).reshape(n, classes, tall * grid[0], wide * grid[1])


def predicted(maps: Tensor, canvas: Canvas, shape: tuple[int, int]) -> np.ndarray:
    """The class of each pixel of the annotation, int64 ``shape``.

    maps: scores [squares, C, S, S]. Where squares overlap, the mean counts. Scores are brought to the
    annotation's resolution bilinearly before the highest is taken, some classes at a time.
    """
    if len(maps) == 1:
        scores = maps[0]
    else:
        side = maps.shape[-1]
        scores = maps.new_zeros(maps.shape[1], canvas.height, canvas.width)
        times = maps.new_zeros(canvas.height, canvas.width)
        for one, (top, left) in zip(maps, canvas.corners, strict=True):
            scores[:, top : top + side, left : left + side] += one
            times[top : top + side, left : left + side] += 1
        scores /= times
    best = winner = None
    for first in range(0, len(scores), step := max(1, NUMBERS // (shape[0] * shape[1]))):
        some = scores[None, first : first + step]
        if tuple(some.shape[2:]) != tuple(shape):
            some = F.interpolate(some, shape, mode="bilinear", align_corners=False)
        value, place = some[0].max(0)
        if best is None or winner is None:
            best, winner = value, place
        else:
            higher = value > best
            best, winner = torch.where(higher, value, best), torch.where(higher, place + first, winner)
    assert winner is not None
    return winner.cpu().numpy()


def score(
    seen: Iterator[Seen],
    predictions: Callable[[Seen], Iterator[np.ndarray]],
    classes: int,
    count: int,
    fabric: Fabric | None,
    samples: dict[str, np.ndarray] | None = None,
) -> list[Overlaps]:
    """Of each candidate, how its predictions overlap with the ``count`` images of a split, on all processes.

    predictions: an image to the prediction of each candidate, [H, W]. samples: gets those of the last
    candidate for some images, as ``Evaluation.samples``.
    """
    mine: dict[int, list[Overlaps]] = {}
    own: dict[str, np.ndarray] = {}
    wanted = set() if samples is None else set(sampled(count))
    for image in seen:
        overlaps = mine.setdefault(image.number, [])
        for said in predictions(image):
            overlaps.append(Overlaps.of_maps([(said, image.target)], classes, image.ignore))
            if image.number in wanted:
                own[f"labels {image.number}"] = said.astype(np.uint16)
    everyone: dict[int, list[Overlaps]] = {}
    for part in gathered(fabric, mine):
        everyone |= part
    if samples is not None:
        for labels in gathered(fabric, own):
            samples |= labels
    images = [everyone[index] for index in range(count)]
    return [
        Overlaps(np.concatenate([o.intersections for o in one]), np.concatenate([o.unions for o in one]))
        for one in zip(*images, strict=True)
    ]


def figures(overlaps: Overlaps) -> dict[str, float]:
    """Mean IoU over classes, and the share of annotated pixels that are right."""
    inner, outer = overlaps.intersections.sum(), overlaps.unions.sum()
    # a wrong pixel is in two unions, a right one in one
    return {"miou": overlaps.score, "pixel_accuracy": float(inner / ((inner + outer) / 2))}
