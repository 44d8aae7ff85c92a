"""What a user names as weights, as a file of ours: ``mae@vit_base``, ``file:PATH``, ``mine=file:PATH``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mimbench import checkpoint, records, registry
from mimbench.errors import UserError
from mimbench.progress import silent
from mimbench.spec import Readout, Setting, content_hash
from mimbench.weights.cached import Report, convert_once
from mimbench.weights.elsewhere import converted
from mimbench.weights.entries import find_entry
from mimbench.weights.entry import Entry
from mimbench.weights.release import OWN_ORIGIN, today

WRITTEN = re.compile(r"(?:(?P<label>[^=]+?)=)?(?P<source>(?:file|timm|hf):.+|[a-z][a-z0-9_]*@.+)")
SPOKEN_FOR = re.compile(r"[@:]")  # in names that say where weights are from
# What of a file's metadata decides which tokens an image gets and how they are read.
DECISIVE = ("backbone_config", "mean", "std", "readout")


def is_given(text: str) -> bool:
    """Whether an item of ``--methods`` names weights and no method to train."""
    return WRITTEN.fullmatch(text) is not None


@dataclass(frozen=True)
class Given:
    """Weights at hand.

    path: an ``encoder.safetensors`` of ours. label: what tables call it. metadata: the file's, with what is
    known of the release today.
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
        """Where it comes from, see ``Release``."""
        return dict(self.metadata["release"])

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
        return _named(of_file(Path(rest).expanduser()), label)
    if kind in ("timm", "hf"):
        return of_file(converted(kind, rest), label or source)
    return of_entry(find_entry(source), label, report)


def _named(given: Given, label: str | None) -> Given:
    """``given`` under the name that its user chose; UserError for one that belongs to other weights."""
    if label is None or label == given.label:
        return given
    name = given.release.get("name")
    if SPOKEN_FOR.search(label) and label != name:
        of = f"it was converted as {name}" if name else "it is none of the catalogue"
        raise UserError(
            f"{given.path} cannot be called {label}, a name of other weights: {of}; choose one "
            "without @ and :"
        )
    return replace(given, label=label)


def of_entry(entry: Entry, label: str | None = None, report: Report = silent) -> Given:
    """A released file, see ``convert_once``."""
    return of_file(convert_once(entry, report), label or entry.name)


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
    return Given(path, label or f"file:{stem}", {**metadata, "release": release_of(path, metadata)})


def release_of(path: Path, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of the weights in a file of ours, see ``Release``."""
    if release := metadata.get("release"):
        return today(release)
    sha256 = checkpoint.sha256(path)
    return {
        "file": path.name,
        "file_sha256": sha256,
        "origin": OWN_ORIGIN,
        "origin_version": 1,
        "image_size": metadata["backbone_config"]["image_size"],
        **_trained_here(path, sha256, str(metadata["method"])),
    }


def _trained_here(path: Path, sha256: str, method: str) -> dict[str, Any]:
    """What the record beside an encoder that mimbench trained says of it; without one, the method's card."""
    folder = path.absolute().parent
    record = records.find(folder.parent.parent, folder.name)
    if record is None or sha256 not in record.product.values():
        cls = registry.methods().get(method)
        external = cls.card.external if cls is not None else "none"
        return {"external": external, "labels": external == "labels"}
    if told := record.facts.get("release"):  # it was taken over itself
        return dict(told)
    content = record.content
    if not content.get("recipe"):
        return {"source": f"record {record.id}"}
    setting, external = Setting.model_validate(content["setting"]), content.get("external", "none")
    epochs = setting.budget.amount if setting.budget and setting.budget.unit == "epochs" else None
    return {
        "data": setting.data,
        "epochs": epochs,
        "external": external,
        "labels": external == "labels",
        "learned_from": content.get("sources", ""),
        "source": f"record {record.id}",
    }
