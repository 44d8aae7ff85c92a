"""Whether names here and names in papers mean the same data set, and how far two backbones are apart."""

from __future__ import annotations

import re

SIZES = ("micro", "tiny", "small", "base", "large", "huge", "giant")
LETTERS = {"T": "tiny", "S": "small", "B": "base", "L": "large", "H": "huge", "g": "giant"}
OTHER = 10.0  # how far a backbone is that is no plain ViT of known size
# What people call the data sets, in the last part of a dataset's name.
ALIASES = {
    "ImageNet-1K": r"imagenet([-_]?1k)?|in1k|ilsvrc([-_]?2012)?",
    "ImageNet-22K": r"imagenet[-_]?2[12]k",
    "Imagenette": r"imagenette2?[-_]?\d*",
    "ADE20K": r"ade20k|adechallengedata2016",
    "COCO": r"coco([-_]?2017)?",
}


def backbones_apart(here: str, key: str, words: str) -> float:
    """0 for the same backbone, else the steps in size between plain ViTs; a tenth more for other patches."""
    if here == key:
        return 0.0
    ours = re.fullmatch(r"vit_([a-z]+)_patch(\d+)", here)
    theirs = re.fullmatch(r"ViT-([TSBLHg])(?:/(\d+))?", words)
    if not ours or ours[1] not in SIZES or not theirs:
        return OTHER
    steps = abs(SIZES.index(ours[1]) - SIZES.index(LETTERS[theirs[1]]))
    return steps + (0.0 if ours[2] == theirs[2] else 0.1)


def same_data(name: str, published: str) -> bool:
    """Whether a dataset's name here, such as "imagenet:val" or "parquet:imagenette128", is a published one's.

    A name is all that is compared: a subset that is called imagenet passes for it.
    """
    source, _, rest = name.lower().partition(":")
    last = re.split(r"[/\\]", rest.rstrip("/\\"))[-1] if rest else source
    pattern = ALIASES.get(published, re.escape(published.lower()))
    if source == "imagenet" and published == "ImageNet-1K":  # a source that reads its own folders
        return True
    return re.fullmatch(pattern, last) is not None
