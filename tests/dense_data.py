"""Tiny made-up sets for segmentation and detection: coloured shapes on grey noise, so that there is
something to learn within seconds. The same arguments write the same bytes.

    root = write_ade20k(tmp_path / "shapes")           # opened as f"ade20k:{root}"
    root = write_coco(tmp_path / "boxes", masks=True)  # opened as f"coco:{root}"

A class is a colour and a form: class k of n has the k-th of n hues and is a disc, a square or a triangle.
"""

from __future__ import annotations

import colorsys
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

FORMS = ("disc", "square", "triangle")
CORNERS = {"disc": 24, "square": 4, "triangle": 3}


def class_names(classes: int) -> list[str]:
    return [f"{FORMS[k % len(FORMS)]} {k}" for k in range(classes)]


def colour(k: int, classes: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(k / classes, 0.9, 0.9)
    return round(red * 255), round(green * 255), round(blue * 255)


def polygon(k: int, x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """Corners of a shape of class ``k`` around (x, y), in pixels to two decimals."""
    corners = CORNERS[FORMS[k % len(FORMS)]]
    turn = math.pi / 4 if corners == 4 else -math.pi / 2
    angles = [turn + 2 * math.pi * i / corners for i in range(corners)]
    return [(round(x + radius * math.cos(a), 2), round(y + radius * math.sin(a), 2)) for a in angles]


def _background(draw: np.random.Generator, height: int, width: int) -> Image.Image:
    grey = draw.integers(90, 166, (height, width, 1), np.uint8)
    return Image.fromarray(np.repeat(grey, 3, axis=2))


def _shapes(
    draw: np.random.Generator, count: int, classes: int, height: int, width: int
) -> list[tuple[int, list[tuple[float, float]]]]:
    """Class and corners of ``count`` shapes that lie inside the image."""
    found = []
    for _ in range(count):
        k = int(draw.integers(classes))
        radius = draw.uniform(0.12, 0.3) * min(height, width)
        x, y = draw.uniform(radius, width - 1 - radius), draw.uniform(radius, height - 1 - radius)
        found.append((k, polygon(k, x, y, radius)))
    return found


def write_ade20k(
    folder: Path,
    *,
    train: int = 12,
    validation: int = 6,
    test: int = 0,
    classes: int = 3,
    size: tuple[int, int] = (48, 64),
    seed: int = 0,
    reduce_zero_label: bool = True,
    suffix: str = ".jpg",
    names: bool = True,
) -> Path:
    """ADE20K's layout. size: height and width; every third image is upright instead.

    ``classes`` counts the background as class 0, the shapes as the others; each image has a frame of two
    pixels without a class. With ``reduce_zero_label`` the frame is 0 in the file and class k is k + 1;
    without, class k is k and the frame is 255. ``names``: whether there is a classes.json.
    """
    draw = np.random.default_rng(seed)
    first, void = (1, 0) if reduce_zero_label else (0, 255)
    for part, count in {"training": train, "validation": validation, "test": test}.items():
        for number in range(count):
            height, width = size if number % 3 != 2 else size[::-1]
            image = _background(draw, height, width)
            labels = Image.new("L", (width, height), first)
            for k, corners in _shapes(draw, int(draw.integers(2, 5)), classes - 1, height, width):
                ImageDraw.Draw(image).polygon(corners, fill=colour(k, classes - 1))
                ImageDraw.Draw(labels).polygon(corners, fill=first + 1 + k)
            ImageDraw.Draw(labels).rectangle((0, 0, width - 1, height - 1), outline=void, width=2)
            name = f"ADE_{part}_{number:04}"
            for below, picture, ending in (("images", image, suffix), ("annotations", labels, ".png")):
                path = folder / below / part / f"{name}{ending}"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture.save(path, **({"quality": 95} if ending == ".jpg" else {}))
    if names:
        (folder / "classes.json").write_text(
            json.dumps(
                {
                    "classes": ["background", *class_names(classes - 1)],
                    "reduce_zero_label": reduce_zero_label,
                }
            )
        )
    return folder


def write_coco(
    folder: Path,
    *,
    train: int = 12,
    validation: int = 6,
    test: int = 0,
    classes: int = 3,
    size: tuple[int, int] = (48, 64),
    seed: int = 0,
    masks: bool = True,
    crowd: bool = False,
    category_ids: Sequence[int] = (),
    suffix: str = ".jpg",
) -> Path:
    """COCO 2017's layout. size: height and width; every third image is upright, every fifth has no object.

    category_ids: of the classes, with gaps by default (2, 5, 8, …). ``crowd``: the last object of every
    fourth image is a crowd, as an uncompressed RLE.
    """
    draw = np.random.default_rng(seed)
    ids = list(category_ids) or [2 + 3 * k for k in range(classes)]
    categories = [
        {"id": i, "name": name, "supercategory": "shape"}
        for i, name in zip(ids, class_names(classes), strict=True)
    ]
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    image_id, object_id = 0, 0
    for part, count in {"train2017": train, "val2017": validation, "test2017": test}.items():
        if not count:
            continue
        (folder / part).mkdir(exist_ok=True)
        content: dict[str, Any] = {"images": [], "annotations": [], "categories": categories}
        for number in range(count):
            height, width = size if number % 3 != 2 else size[::-1]
            image = _background(draw, height, width)
            objects = 0 if number % 5 == 4 else int(draw.integers(1, 4))
            image_id += 7
            name = f"{image_id:012}{suffix}"
            for place, (k, corners) in enumerate(_shapes(draw, objects, classes, height, width)):
                ImageDraw.Draw(image).polygon(corners, fill=colour(k, classes))
                xs, ys = zip(*corners, strict=True)
                object_id += 1
                many = crowd and number % 4 == 0 and place == objects - 1
                outline = [value for corner in corners for value in corner]
                content["annotations"].append(
                    {
                        "id": object_id,
                        "image_id": image_id,
                        "category_id": ids[k],
                        "bbox": [min(xs), min(ys), round(max(xs) - min(xs), 2), round(max(ys) - min(ys), 2)],
                        "area": round(_area(corners), 2),
                        "iscrowd": int(many),
                        "segmentation": []
                        if not masks
                        else _run_lengths(corners, height, width)
                        if many
                        else [outline],
                    }
                )
            image.save(folder / part / name, **({"quality": 95} if suffix == ".jpg" else {}))
            content["images"].append({"id": image_id, "file_name": name, "height": height, "width": width})
        (folder / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))
    return folder


def _area(corners: list[tuple[float, float]]) -> float:
    following = [*corners[1:], corners[0]]
    return abs(sum(x * b - a * y for (x, y), (a, b) in zip(corners, following, strict=True))) / 2


def _run_lengths(corners: list[tuple[float, float]], height: int, width: int) -> dict[str, Any]:
    """COCO's uncompressed RLE: lengths of runs of 0, 1, 0, …, column by column."""
    mask = Image.new("1", (width, height))
    ImageDraw.Draw(mask).polygon(corners, fill=1)
    flat = np.asarray(mask).astype(np.int8).flatten("F")
    ends = np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist()
    return {"size": [height, width], "counts": np.diff([0, *ends, len(flat)]).tolist()}
