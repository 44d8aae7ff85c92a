"""What a user names as weights, as a file of ours: ``mae@vit_base``, ``file:PATH``, ``mine=file:PATH``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimbench import checkpoint
from mimbench.data.cache import cache_folder
from mimbench.download import FetchError
from mimbench.errors import UserError
from mimbench.files import locked
from mimbench.progress import Progress, silent
from mimbench.registry import find_origin
from mimbench.spec import Readout, content_hash
from mimbench.weights.convert import convert
from mimbench.weights.entries import find_entry
from mimbench.weights.entry import Entry, Mirror
from mimbench.weights.foreign import UnreadableError
from mimbench.weights.obtain import by_hand, discard, obtained

WRITTEN = re.compile(r"(?:(?P<label>[^=:@]+)=)?(?P<source>(?:file|timm|hf):.+|[a-z][a-z0-9_]*@.+)")
# What of a file's metadata decides which tokens an image gets and how they are read.
DECISIVE = ("backbone_config", "mean", "std", "readout")

Report = Callable[[Progress], None]


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


def of_entry(entry: Entry, label: str | None = None, report: Report = silent, keep: bool = False) -> Given:
    """A released file, out of the cache where it was converted before: then nothing is asked of a network.

    keep: the file as it was released, too; otherwise it is deleted once it is converted. Several processes
    convert once. Raises UserError where no mirror has a file that can be read, naming each reason, and for a
    file of another layout.
    """
    path = converted_path(entry)
    if not is_current(path, entry):

        def waits() -> None:
            report(Progress(f"waiting for another process that gets {entry.name}", 0.0))

        with locked(path.with_suffix(".lock"), waits):
            if not is_current(path, entry):
                _make(entry, path, report, keep)
    return Given(path, label or entry.name, checkpoint.read_metadata(path))


def _make(entry: Entry, path: Path, report: Report, keep: bool) -> None:
    """Convert the file of the first mirror that has one which can be read."""
    reasons = []
    for mirror in entry.mirrors:
        try:
            with obtained(mirror, report, keep) as original:
                try:
                    report(Progress(f"converting {entry.name}", 0.0))
                    convert(original, as_of(entry, mirror), path, mirror.origin)
                    return
                except UnreadableError as error:
                    reasons.append(f"{mirror.url}: {error}")
                    discard(mirror)
        except FetchError as error:
            reasons.append(str(error))
    said = "; ".join(reasons) or "it can be fetched by hand only"
    raise UserError(f"{entry.name}: {said}; {by_hand(entry)}")


def as_of(entry: Entry, mirror: Mirror) -> Entry:
    """The entry as a mirror's file has it, which may be of another layout."""
    if mirror.origin or mirror.container is not None:
        return entry.model_copy(update={"container": mirror.container})
    return entry


def converted_path(entry: Entry) -> Path:
    """Where the converted file of an entry is kept."""
    return cache_folder("encoders") / f"{entry.name}.safetensors"


def is_current(path: Path, entry: Entry) -> bool:
    """Whether a converted file is there, and is what today's code would make of the same original."""
    try:
        metadata = checkpoint.read_metadata(path)
    except UserError:  # none there, or damaged: it can be made again
        return False
    release = metadata.get("release", {})
    used = release.get("origin", "")
    mirrored = {mirror.origin for mirror in entry.mirrors if mirror.origin}
    if used not in {entry.origin, *mirrored} or release.get("origin_version") != find_origin(used).version:
        return False
    expected = {
        "backbone_config": find_origin(used).config(entry),
        "mean": list(entry.mean),
        "std": list(entry.std),
        "readout": entry.readout.content(),
    }
    return all(metadata.get(name) == value for name, value in expected.items())


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
