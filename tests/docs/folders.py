"""What a page's blocks find in their folder: small stand-ins for the reader's own data and checkout."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from .pages import ROOT

SIZE = 32  # pixels


def pictures(folder: Path, count: int, hue: int, seed: int) -> None:
    """Noise in one of the colours, so that there is something to learn."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(seed)
    for index in range(count):
        image = draw.integers(0, 120, (SIZE, SIZE, 3), dtype=np.uint8)
        image[..., hue] += 120
        Image.fromarray(image).save(folder / f"{index:03}.png")


def unlabelled(folder: Path) -> None:
    """Images in one folder, without classes."""
    pictures(folder, 40, hue=0, seed=0)


def labelled(folder: Path) -> None:
    """Class folders; splits are cut by mimbench."""
    for hue, name in enumerate(("red", "green", "blue")):
        pictures(folder / name, 30, hue, seed=hue + 1)


def board(folder: Path) -> None:
    """A results folder: the records of all methods on digits, without weights."""
    shutil.copytree(ROOT / "results" / "digits-60epochs" / "records", folder / "records")


def checkout(folder: Path) -> None:
    """This project as it is cloned, into which methods, protocols and weights may be written."""
    for name in ("method_zoo", "protocols", "tests"):
        for path in (ROOT / name).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                link = folder / path.relative_to(ROOT)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path)
    for name in ("mimbench", "pyproject.toml", "constraints.txt"):
        (folder / name).symlink_to(ROOT / name)


KINDS: dict[str, Callable[[Path], None]] = {
    "unlabelled": unlabelled,
    "labelled": labelled,
    "board": board,
    "checkout": checkout,
}
