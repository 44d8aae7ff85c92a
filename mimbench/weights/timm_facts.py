"""What timm's names and settings tell of how weights were trained: on which data, and what they were told."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from mimbench.spec import External

# Of weights without a classifier, by tag: key of the method, data, what it was told, and by what.
LABEL_FREE: dict[str, tuple[str, str, External, str]] = {
    "mae": ("mae", "ImageNet-1K", "none", ""),
    "dino": ("dino", "ImageNet-1K", "none", ""),
    "fb_dino": ("dino", "ImageNet-1K", "none", ""),
    "lvd142m": ("dinov2", "LVD-142M", "none", ""),
    "lvd1689m": ("dinov3", "LVD-1689M", "none", ""),
    "dinov3_lvd1689m": ("dinov3", "LVD-1689M", "none", ""),
    "sat493m": ("dinov3", "SAT-493M", "none", ""),
    "in1k_ijepa": ("ijepa", "ImageNet-1K", "none", ""),
    "in22k_ijepa": ("ijepa", "ImageNet-22K", "none", ""),
    "fcmae": ("fcmae", "ImageNet-1K", "none", ""),
    "seer": ("seer", "one billion public images", "none", ""),
    "mim_in22k": ("eva02", "ImageNet-22K", "teacher", "teacher EVA-CLIP"),
    "mim_m38m": ("eva02", "Merged-38M", "teacher", "teacher EVA-CLIP"),
    "eupe_lvd1689m": ("eupe", "LVD-1689M", "teacher", "several teachers"),
    "c_radio": ("radio", "", "teacher", "several teachers"),
}
CONTEXT = "timm reads the context encoder out of the file; the paper evaluates the target encoder (ijepa@…)"
NOTES = {  # by tag
    "in1k_ijepa": CONTEXT,
    "in22k_ijepa": CONTEXT,
}
IMAGE_TEXT = re.compile(
    r"clip|siglip|openai|laion|webli|datacomp|dfn\d|merged2b|yfcc15m|cc12m|aimv2|beit3|_pe_|qwen|gemma|deepseek|"
    r"ogvl|intern|florence|pali|tips"
)
DATA = {
    "in1k": "ImageNet-1K",
    "in12k": "ImageNet-12K",
    "in21k": "ImageNet-21K",
    "in22k": "ImageNet-22K",
}


@dataclass(frozen=True)
class Told:
    """How weights were trained, as far as timm says: fields of ``Entry``."""

    method: str
    data: str
    external: External
    labels: bool
    learned_from: str


def told(architecture: str, tag: str, num_classes: int) -> Told:
    """What is known of timm's weights ``architecture.tag`` whose classifier has ``num_classes``.

    A classifier means labels, but for the projection of a CLIP model. Where nothing tells, the most that can
    be is said, labels: to count weights as free of them takes knowing it.
    """
    data = ", ".join(dict.fromkeys(DATA[part] for part in tag.split("_") if part in DATA))
    if tag in LABEL_FREE:
        method, known, external, source = LABEL_FREE[tag]
        method = "hiera" if architecture.startswith("hiera") else method
        return Told(method, known, external, False, source)
    if IMAGE_TEXT.search(f"{architecture}.{tag}") and not data:
        return Told("timm", "", "teacher", False, "texts that go with the images")
    if num_classes or data:
        return Told("timm", data, "labels", True, "")
    return Told("timm", "", "labels", False, "not known")


def arxiv_of(paper_ids: Any) -> str:
    """The first arXiv number of timm's ``paper_ids``."""
    ids = [paper_ids] if isinstance(paper_ids, str) else list(paper_ids or ())
    return next((text.removeprefix("arXiv:") for text in ids if text.startswith("arXiv:")), "")
