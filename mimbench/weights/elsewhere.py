"""Weights that the catalogue does not have: timm's by name, and repositories of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimbench import checkpoint
from mimbench.data.cache import cache_folder
from mimbench.errors import UserError
from mimbench.files import locked
from mimbench.registry import find_origin
from mimbench.spec import content_hash
from mimbench.weights import hub
from mimbench.weights.cached import as_of
from mimbench.weights.convert import convert
from mimbench.weights.entries import entries
from mimbench.weights.entry import Entry, Mirror

if TYPE_CHECKING:
    from mimbench.weights.timm_files import TimmWeights


def converted(kind: str, name: str) -> Path:
    """The encoder of ``timm:NAME`` or ``hf:OWNER/REPO[@REVISION][:FILE]``, converted if it was not yet.

    Raises UserError where there are no such weights, and where they cannot be had or used.
    """
    return _of_timm(name) if kind == "timm" else _of_repository(hub.parse(name))


def _kept(
    name: str, key: Any, is_current: Callable[[Mapping[str, Any]], bool], make: Callable[[Path], None]
) -> Path:
    """A converted file in the cache, made anew where today's code would make another; by one process only."""
    said = re.sub(r"[^\w.@\-]", "_", name)
    path = cache_folder("encoders") / f"{said}-{content_hash(key, 8)}.safetensors"

    def is_there() -> bool:
        try:
            return is_current(checkpoint.read_metadata(path).get("release", {}))
        except UserError:  # none there, or damaged: it can be made again
            return False

    if not is_there():
        with locked(path.with_suffix(".lock"), lambda: None):
            if not is_there():
                make(path)
    return path


def _of_timm(name: str) -> Path:
    from mimbench.weights import timm_files

    return _by_timm(f"timm-{name}", name, timm_files.by_name(name))


def _by_timm(name: str, key: Any, weights: TimmWeights) -> Path:
    """The encoder in weights that timm reads."""
    from mimbench.weights import timm_files

    def is_current(release: Mapping[str, Any]) -> bool:
        return release.get("origin_version") == timm_files.VERSION

    return _kept(name, key, is_current, lambda path: timm_files.convert(weights, path))


def _of_repository(place: hub.Place) -> Path:
    if place.file.rpartition("/")[2] == checkpoint.ENCODER_FILE:
        return _ours(place, place.file)
    if (known := _in_catalogue(place)) is not None:
        entry, mirror = known
        file = hub.fetch(place, mirror.url.removeprefix(f"hf:{place.repo}/"))
        return _by_entry(place, as_of(entry, mirror), mirror.origin or entry.origin, file)
    try:
        config = hub.fetch_json(place, "config.json")
    except hub.AbsentError as absent:
        try:
            return _ours(place, place.file or checkpoint.ENCODER_FILE)
        except hub.NotThereError:
            raise
        except hub.AbsentError:
            raise absent from None
    if "architecture" in config:
        from mimbench.weights import timm_files

        weights = timm_files.in_repository(place, config)
        key = [str(place), timm_files.obtain(weights).commit, place.file]
        return _by_timm(f"hf-{place.repo}", key, weights)
    return _of_transformers(place, config)


def _ours(place: hub.Place, name: str) -> Path:
    """An encoder that mimbench wrote; UserError where the repository holds something else."""
    try:
        path = hub.fetch(place, name).path
    except hub.NotThereError as error:
        raise hub.NotThereError(
            f"{place} has neither a config.json (of timm or transformers) nor an {checkpoint.ENCODER_FILE} "
            "(of mimbench); name its file behind a colon, or fetch it and give it to mimbench weights convert"
        ) from error
    if "backbone_config" not in checkpoint.read_metadata(path):
        raise UserError(
            f"{name} of {place} was not written by mimbench and nothing beside it says what it is; fetch it "
            "and give it to mimbench weights convert --as NAME, NAME being the entry whose layout it has"
        )
    return path


def _of_transformers(place: hub.Place, config: Mapping[str, Any]) -> Path:
    from mimbench.weights.transformers_config import entry_of

    try:
        images = hub.fetch_json(place, "preprocessor_config.json")
    except hub.AbsentError:
        images = {}
    entry = entry_of(place, config, images)
    return _by_entry(
        place, entry, entry.origin, hub.fetch_first(place, (place.file,) if place.file else hub.WEIGHTS)
    )


def _in_catalogue(place: hub.Place) -> tuple[Entry, Mirror] | None:
    """The entry of which a repository holds the file, with that mirror; timm's are read by timm."""
    if place.revision != "main" or place.repo.startswith("timm/"):
        return None
    start = f"hf:{place.repo}/"
    found = [
        (entry, mirror)
        for entry in entries().values()
        for mirror in entry.mirrors
        if (mirror.url == start + place.file if place.file else mirror.url.startswith(start))
    ]
    return found[0] if len(found) == 1 else None


def _by_entry(place: hub.Place, entry: Entry, origin: str, file: hub.HubFile) -> Path:
    """The encoder in a file of the hub that has the layout of an entry."""
    version = find_origin(origin).version

    def is_current(release: Mapping[str, Any]) -> bool:
        return (release.get("origin"), release.get("origin_version")) == (origin, version)

    def make(path: Path) -> None:
        convert(file.path, entry, path, origin)

    return _kept(f"hf-{place.repo}", [str(place), file.commit, file.path.name], is_current, make)
