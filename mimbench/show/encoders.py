"""What encoders make of images: where they look, their tokens' main directions, what they find alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from mimbench.data import Dataset, Split
from mimbench.data.transforms import EvalTransform
from mimbench.encoder import Encoder
from mimbench.errors import UserError
from mimbench.features import FeatureStore
from mimbench.progress import Progress
from mimbench.show.panels import (
    RIGHT,
    WRONG,
    Panel,
    Sheet,
    class_name,
    file_name,
    spread_over_classes,
)
from mimbench.show.rows import TrainedRow, jobs_of
from mimbench.spec import Readout

NEIGHBOURS = 5


def attention(rows: Sequence[TrainedRow], data: Dataset, count: int) -> Sheet:
    """Where the last block looks, averaged over its heads: from the class token, else from all patches.

    Raises UserError where no row has attention.
    """

    def of(encoder: Encoder, images: Tensor) -> tuple[Tensor, str]:
        (probabilities,) = encoder.attentions(images)
        grid = encoder.backbone.grid
        patches = grid[0] * grid[1]
        looking = probabilities.mean(1)
        if encoder.has_cls:
            seen, whence = looking[:, 0, -patches:], "from the class token"
        else:
            seen, whence = looking[:, -patches:, -patches:].mean(1), "from all patches"
        return seen.unflatten(1, grid), whence

    images, named, maps, left_out = _of_each(rows, data, count, of)
    panels = [
        (Panel(image), *(Panel(_overlay(image, seen[number])) for seen, _ in maps))
        for number, image in enumerate(images)
    ]
    headings = tuple(f"{row.name}\n{whence}" for row, (_, whence) in zip(named, maps, strict=True))
    note = "Attention of the last block, mean over its heads; each picture scaled to its own range."
    return _sheet("attention", "where the last block looks", headings, panels, named, data, note, left_out)


def principal(rows: Sequence[TrainedRow], data: Dataset, count: int) -> Sheet:
    """The patch tokens' three main directions over these images, as red, green and blue."""

    def of(encoder: Encoder, images: Tensor) -> Tensor:
        (tokens,) = encoder.tokens(images)
        flat = tokens.patches.flatten(0, 2).double()
        centred = flat - flat.mean(0)
        rank = min(3, *centred.shape)
        _, vectors = torch.linalg.eigh(centred.T @ centred)
        directions = vectors[:, -rank:].flip(1)
        # A direction's sign is arbitrary: the largest share is made positive, so that pictures repeat.
        largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
        colours = centred @ (directions * largest.sign())
        low, high = colours.quantile(0.01, dim=0), colours.quantile(0.99, dim=0)
        scaled = ((colours - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
        padded = torch.nn.functional.pad(scaled, (0, 3 - rank), value=0.5)
        return padded.view(*tokens.patches.shape[:3], 3)

    images, named, maps, left_out = _of_each(rows, data, count, of)
    panels = [
        (Panel(images[number]), *(Panel((255 * m[number]).round().byte().numpy()) for m in maps))
        for number in range(len(images))
    ]
    note = (
        "Patch tokens of the last block after the final norm, projected onto their first three principal "
        "directions over all images shown; each direction is one of red, green and blue. Colours of two "
        "methods have nothing to do with each other."
    )
    headings = tuple(row.name for row in named)
    return _sheet("pca", "main directions of patch tokens", headings, panels, named, data, note, left_out)


def neighbours(row: TrainedRow, data: Dataset, count: int, report: Callable[[Progress], None]) -> Sheet:
    """The training images nearest to validation images, by standardised features as in k-NN."""
    encoder = row.encoder()
    readout = row.readout
    if "cls" in readout.token and not encoder.has_cls:
        readout = Readout(layer=readout.layer, norm=readout.norm, token="mean")
    store = FeatureStore(row.folder / "features")
    train, validation = (
        torch.from_numpy(
            np.asarray(
                store.get(encoder, split, [readout], crop_pct=data.defaults.crop_pct, report=report)[readout]
            )
        )
        for split in (data.train, data.validation)
    )
    chosen = spread_over_classes(data.validation, count)
    # What never changes in train would, divided by nothing, outweigh all else.
    mean, changes = train.mean(0), train.amin(0) < train.amax(0)
    scale = torch.where(changes, train.std(0), torch.inf).reciprocal()
    bank, asked = (
        torch.nn.functional.normalize((x - mean) * scale, dim=1) for x in (train, validation[chosen])
    )
    found = (asked @ bank.T).topk(min(NEIGHBOURS, len(bank)), dim=1)
    panels = []
    for number, (similar, places) in enumerate(zip(*found, strict=True)):
        own = None if data.validation.labels is None else int(data.validation.labels[chosen[number]])
        query = _pictures(data.validation, [chosen[number]], encoder.image_size, data)[0]
        line = [Panel(query, "" if own is None else class_name(data, own))]
        pictures = _pictures(data.train, places.tolist(), encoder.image_size, data)
        for picture, place, cosine in zip(pictures, places.tolist(), similar.tolist(), strict=True):
            caption, frame = f"{cosine:.2f}", ""
            if own is not None:
                assert data.train.labels is not None
                label = int(data.train.labels[place])
                caption, frame = f"{class_name(data, label)} {cosine:.2f}", RIGHT if label == own else WRONG
            line.append(Panel(picture, caption, frame))
        panels.append(tuple(line))
    headings = ("validation image", *(f"{n + 1}." for n in range(found.indices.shape[1])))
    note = (
        f"Nearest training images by cosine similarity of {readout.label} features, standardised by the "
        "statistics of train." + (" Green: of the same class." if data.classes else "")
    )
    title = f"{row.name}: nearest training images"
    return Sheet(
        file_name("neighbours", row.name),
        title,
        headings,
        tuple(panels),
        note,
        jobs=jobs_of([row]),
        data=(data.name, data.fingerprint),
    )


def _of_each(
    rows: Sequence[TrainedRow], data: Dataset, count: int, of: Callable
) -> tuple[list[np.ndarray], list[TrainedRow], list, list[str]]:
    """(images as the first row sees them, the rows that gave something, what they gave, who gave nothing)."""
    chosen = spread_over_classes(data.validation, count)
    named, found, left_out = [], [], []
    for row in rows:
        encoder = row.encoder()
        pictures = _pictures(data.validation, chosen, encoder.image_size, data)
        batch = torch.stack([torch.from_numpy(picture).permute(2, 0, 1) for picture in pictures])
        try:
            found.append(of(encoder, batch))
            named.append(row)
        except UserError as error:
            left_out.append(f"{row.name}: {error}")
    if not named:
        raise UserError("; ".join(left_out))
    return _pictures(data.validation, chosen, named[0].setting.image_size, data), named, found, left_out


def _pictures(split: Split, places: Sequence[int], size: int, data: Dataset) -> list[np.ndarray]:
    transform = EvalTransform(size, data.defaults.crop_pct)
    return [transform(split.image(place)).permute(1, 2, 0).contiguous().numpy() for place in places]


def _overlay(image: np.ndarray, seen: Tensor) -> np.ndarray:
    """The image in grey, where it is looked at in warm colours."""
    from matplotlib import colormaps

    low, high = float(seen.min()), float(seen.max())
    scaled = (seen - low) / max(high - low, 1e-12)
    large = torch.nn.functional.interpolate(scaled[None, None].float(), image.shape[:2], mode="bilinear")
    heat = colormaps["inferno"](large[0, 0].clamp(0, 1).numpy())[..., :3]
    grey = image.mean(2, keepdims=True) / 255
    return (255 * (0.35 * grey + 0.65 * heat)).astype(np.uint8)


def _sheet(
    kind: str,
    title: str,
    headings: tuple[str, ...],
    panels: list,
    rows: Sequence[TrainedRow],
    data: Dataset,
    note: str,
    left_out: Sequence[str],
) -> Sheet:
    told = " ".join([note, *left_out])
    name = file_name(kind, *(row.name for row in rows))[:120]
    source = (data.name, data.fingerprint)
    return Sheet(name, title, ("image", *headings), tuple(panels), told, jobs=jobs_of(rows), data=source)
