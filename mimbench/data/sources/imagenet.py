"""``imagenet:PATH``: ImageNet-1k (ILSVRC 2012), or a subset of its classes, in the usual folders.

PATH (or PATH/ILSVRC/Data/CLS-LOC) holds ``train/<wnid>/*.JPEG`` and ``val/<wnid>/*.JPEG``. The official
validation part is the test split. Russakovsky et al. 2015, arXiv:1409.0575.
"""

from __future__ import annotations

import re

from mimbench.data.sources.base import Listing, existing, local_name
from mimbench.data.sources.imagefolder import ImageFiles
from mimbench.errors import UserError

_WNID = re.compile(r"n\d{8}")


def imagenet(argument: str) -> Listing:
    """ImageNet in the folders train/<wnid> and val/<wnid>; classes in order of wnid."""
    path = existing("imagenet", argument)
    name = local_name("imagenet", path)
    kaggle = path / "ILSVRC" / "Data" / "CLS-LOC"
    root = kaggle if kaggle.is_dir() and not (path / "train").is_dir() else path
    for part in ("train", "val"):
        if not (root / part).is_dir():
            raise UserError(f"imagenet:{argument} has no folder {part}; expected train/<wnid> and val/<wnid>")
    train, val = (ImageFiles(root / part, f"{part}/") for part in ("train", "val"))
    if val.loose:
        raise UserError(
            f"{val.folder} is not sorted into classes; move each image into a folder named by its wnid, "
            "as the script valprep.sh at github.com/soumith/imagenetloader.torch does"
        )
    for files in (train, val):
        wrong = [folder for folder in files.subfolders if not _WNID.fullmatch(folder)]
        if wrong or files.loose or not len(files):
            found = wrong[0] if wrong else "images outside of them" if files.loose else "no image"
            raise UserError(
                f"{files.folder} should hold images in folders named by wnid such as n01440764, but there is "
                f"{found}; use imagefolder:PATH for other sets"
            )
    train.label(train.subfolders, name)
    val.label(train.subfolders, name)
    return Listing(name=name, parts={"train": train, "validation": val}, classes=train.subfolders)
