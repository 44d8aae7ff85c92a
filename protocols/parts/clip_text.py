"""A CLIP model of open_clip: its weights, what it makes of class names, and what leads into its space.

open_clip is imported when it is needed: it is an extra.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mimbench.encoder import Linear
from mimbench.errors import UserError, unknown

Templates = Literal["openai", "simple", "name"]
DIGEST = "#sha256="
FOLDER = "local-dir:"
_FILE = re.compile(r".*[/\\].*|.*\.(pt|pth|bin|safetensors)")
_WNID = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class Source:
    """Where a CLIP model is: a name of open_clip's with a tag or a file, or a folder, or a repository."""

    model: str  # as ``open_clip.create_model`` takes it
    weights: str | None  # a tag or a file; None: ``model`` holds its own
    path: Path | None  # of the file or folder on this machine, if it is one
    digest: str  # of the file or folder, SHA-256 hex; "" for a tag or repository, taken to stay what it is


def parse_source(text: str) -> Source:
    """``ViT-B-16@PATH`` -> a source. Raises ValueError, whose message is half a sentence."""
    text, _, digest = text.partition(DIGEST)
    model, _, weights = text.partition("@")
    own = text.startswith((FOLDER, "hf-hub:"))
    if not model or (not own and not weights):
        raise ValueError(
            "write MODEL@FILE, MODEL@TAG, local-dir:FOLDER or hf-hub:NAME, as open_clip has them"
        )
    if text.startswith(FOLDER):
        path = Path(text.removeprefix(FOLDER)).expanduser()
        return Source(f"{FOLDER}{path}", None, path, digest)
    if own:
        return Source(text, None, None, digest)
    if _FILE.fullmatch(weights):
        path = Path(weights).expanduser()
        return Source(model, str(path), path, digest)
    return Source(model, weights, None, digest)


def pinned(text: str) -> str:
    """The same with the digest of the file or folder it names: other weights are another evaluation.

    Raises ValueError where they cannot be read.
    """
    if not text or DIGEST in text:
        return text
    path = parse_source(text).path
    return text if path is None else f"{text}{DIGEST}{_digest(path)[:16]}"


def _digest(path: Path) -> str:
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    try:
        for file in files:
            with open(file, "rb") as opened:
                while block := opened.read(1 << 20):
                    digest.update(block)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}; check the path") from error
    return digest.hexdigest()


class CLIP:
    """A CLIP model of open_clip, frozen, on the CPU until it embeds."""

    def __init__(self, text: str):
        """Raises UserError for an unknown model or tag, and for weights that are not what they were."""
        import mimbench.torchvision_compat  # noqa: F401  isort: skip
        import open_clip

        try:
            source = parse_source(text)
            if source.digest and pinned(text.partition(DIGEST)[0]) != text:
                raise UserError(
                    f"{source.path} has changed since this evaluation was planned; start it again"
                )
            if source.weights is not None and source.model not in open_clip.list_models():
                raise unknown("model of open_clip", source.model, open_clip.list_models())
            self.model = open_clip.create_model(
                source.model, pretrained=source.weights, precision="fp32", require_pretrained=True
            )
            self.tokenizer = open_clip.get_tokenizer(source.model)
        except (RuntimeError, ValueError, OSError, KeyError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"zeroshot.clip={text}: open_clip cannot load it ({reason})") from error
        self.model.eval().requires_grad_(False)

    @torch.no_grad()
    def class_embeddings(self, names: Sequence[str], templates: Templates, device: torch.device) -> Tensor:
        """Unit rows float32 [classes, E]: the mean over the templates of a class's prompts."""
        import open_clip

        texts: Any = {
            "openai": open_clip.OPENAI_IMAGENET_TEMPLATES,
            "simple": open_clip.SIMPLE_IMAGENET_TEMPLATES,
            "name": ("{}",),
        }[templates]
        self.model.to(device)
        weights = open_clip.build_zero_shot_classifier(
            self.model, self.tokenizer, list(names), texts, num_classes_per_batch=8, device=device
        )
        return weights.T.float().contiguous()

    @property
    def scale(self) -> float:
        """What cosines are multiplied by before the softmax."""
        return float(self.model.logit_scale.exp())

    @property
    def width(self) -> int:
        """Of its space."""
        return int(self.model.encode_text(self.tokenizer(["a"])).shape[1])

    def projection(self) -> Linear | None:
        """The linear map that ends the model's own image tower; None without one."""
        visual: Any = self.model.visual
        if isinstance(getattr(visual, "proj", None), Tensor):  # open_clip's own transformer
            return Linear(visual.proj.T, None)
        if not hasattr(visual, "trunk"):
            return None
        last = visual.head.proj if hasattr(visual.head, "proj") else visual.trunk.get_classifier()
        return Linear(last.weight, last.bias) if isinstance(last, nn.Linear) else None


def class_names(classes: Sequence[str]) -> list[str]:
    """Names for prompts: those of CLIP's authors for classes that are ImageNet's wnids, else the data's own.

    Raises UserError for a wnid that is not one of ImageNet-1k's.
    """
    if not all(_WNID.fullmatch(name) for name in classes):
        return [name.replace("_", " ").strip() for name in classes]
    import mimbench.torchvision_compat  # noqa: F401  isort: skip
    import open_clip
    from timm.data import ImageNetInfo

    place = {wnid: i for i, wnid in enumerate(ImageNetInfo("imagenet-1k").label_names())}
    if strange := [wnid for wnid in classes if wnid not in place]:
        raise UserError(
            f"zeroshot has no name for the class {strange[0]}, which is not of ImageNet-1k; name the folders"
        )
    return [open_clip.IMAGENET_CLASSNAMES[place[wnid]] for wnid in classes]
