"""What a user names as weights, as a file of ours: ``mae@vit_base``, ``file:PATH``, ``mine=file:PATH``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimbench import checkpoint
from mimbench.errors import UserError
from mimbench.progress import silent
from mimbench.spec import Readout, content_hash
from mimbench.weights.cached import Report, convert_once
from mimbench.weights.entries import find_entry
from mimbench.weights.entry import Entry

WRITTEN = re.compile(r"(?:(?P<label>[^=:@]+)=)?(?P<source>(?:file|timm|hf):.+|[a-z][a-z0-9_]*@.+)")
# What of a file's metadata decides which tokens an image gets and how they are read.
DECISIVE = ("backbone_config", "mean", "std", "readout")


def is_given(text: str) -> bool:
    """Whether an item of ``--methods`` names weights and no method to train."""
    return WRITTEN.fullmatch(text) is not None


@dataclass(frozen=True)
class Given:
    """Weights at hand.

    path: an ``encoder.safetensors`` of ours. label: what tables call it. about: what is known of the release,
    see ``Entry``; of a file of ours what its metadata say.
    """

    path: Path
    label: str
    metadata: Mapping[str, Any]

    @property
    def method(self) -> str:
        return str(self.metadata["method"])

    @property
    def config(self) -> dict[str, Any]:
        return dict(self.metadata["backbone_config"])

    @property
    def readout(self) -> Readout:
        return Readout.model_validate(self.metadata.get("readout", {}))

    @property
    def release(self) -> dict[str, Any]:
        """Where it comes from; empty for a file that mimbench trained."""
        return dict(self.metadata.get("release", {}))

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides its tokens and their readout, as JSON data."""
        return {
            "file_sha256": self.release["file_sha256"],
            "origin": f"{self.release['origin']}@{self.release['origin_version']}",
            **{name: self.metadata[name] for name in DECISIVE if name in self.metadata},
        }

    @property
    def key(self) -> str:
        """A hash of ``identity``."""
        return content_hash(self.identity)


def resolve(text: str, report: Report = silent) -> Given:
    """The weights that ``text`` names, fetched and converted if need be; ``report`` hears how far that is.

    Raises UserError where there are none of that name, or where they cannot be had or used.
    """
    match = WRITTEN.fullmatch(text)
    if match is None:
        raise UserError(
            f"{text!r} names no weights; write METHOD@BACKBONE (mimbench weights list), file:PATH, "
            "timm:NAME or hf:REPO"
        )
    source, label = match["source"], match["label"]
    kind, _, rest = source.partition(":")
    if kind == "file":
        return of_file(Path(rest).expanduser(), label)
    return of_entry(find_entry(source), label, report)


def of_entry(entry: Entry, label: str | None = None, report: Report = silent) -> Given:
    """A released file, see ``convert_once``."""
    path = convert_once(entry, report)
    return Given(path, label or entry.name, checkpoint.read_metadata(path))


def of_file(path: Path, label: str | None = None) -> Given:
    """A file that mimbench wrote: a conversion, or an encoder it trained."""
    if path.is_dir():
        path = path / checkpoint.ENCODER_FILE
    metadata = checkpoint.read_metadata(path)
    if not {"backbone_config", "mean", "std", "method"} <= metadata.keys():
        raise UserError(
            f"{path} is no encoder that mimbench wrote; make one of it with mimbench weights convert {path} "
            "--as NAME, NAME being the entry of mimbench weights list whose layout it has"
        )
    stem = path.parent.name if path.name == checkpoint.ENCODER_FILE else path.stem
    own = {"file_sha256": checkpoint.sha256(path), "origin": "mimbench", "origin_version": 1}
    return Given(path, label or f"file:{stem}", {**metadata, "release": metadata.get("release") or own})
