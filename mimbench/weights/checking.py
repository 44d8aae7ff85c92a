"""Whether weights are what the catalogue says: converted files in the cache, and foreign ones as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from mimbench import checkpoint
from mimbench.data.cache import cache_folder
from mimbench.errors import UserError
from mimbench.files import sha256
from mimbench.registry import origins
from mimbench.tensor_files import finite
from mimbench.weights.cached import is_current
from mimbench.weights.convert import faults
from mimbench.weights.entries import entries, find_entry
from mimbench.weights.entry import Entry
from mimbench.weights.obtain import layouts
from mimbench.weights.taking import known_sums


def at_hand() -> dict[str, Path]:
    """All converted files in the cache by name."""
    return {path.stem: path for path in sorted(cache_folder("encoders").glob("*.safetensors"))}


def checked(names: Sequence[str] = ()) -> dict[str, list[str]]:
    """What is wrong with converted files by name, see ``faults_of_converted``; by default of all there are.

    Raises UnknownNameError for what is neither in the catalogue nor in the cache.
    """
    there = at_hand()
    for name in names:
        if name not in there:
            find_entry(name)
    return {name: faults_of_converted(name) for name in names or there}


def faults_of_converted(name: str) -> list[str]:
    """What is wrong with the converted file of the entry ``name``, as sentences; none: nothing."""
    path = at_hand().get(name)
    if path is None:
        return [f"it is not converted yet; mimbench weights get {name} does that"]
    try:
        faults = [*_values(path)]
        release = checkpoint.read_metadata(path).get("release", {})
        faults += [] if faults else [*_loads(path)]
    except UserError as error:
        return [str(error)]
    entry = entries().get(name)
    if entry is not None:
        faults += _against(entry, path, release)
    return faults


def _values(path: Path) -> Iterator[str]:
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                if not finite(file.get_tensor(name)):
                    yield f"{name} holds NaN or infinity"
    except SafetensorError as error:
        yield f"it cannot be read ({error})"


def _loads(path: Path) -> Iterator[str]:
    """Whether the encoder is what the file's own metadata say."""
    try:
        checkpoint.load_encoder(path)
    except UserError as error:
        yield str(error)


def _against(entry: Entry, path: Path, release: dict[str, object]) -> Iterator[str]:
    known = known_sums(entry)
    of = str(release.get("file_sha256", ""))
    if known and of not in known:
        sums = " and ".join(sorted(known))
        yield f"it was made of a file with the sha256 {of}, and the catalogue knows {sums}"
    origin = origins().get(str(release.get("origin", "")))
    if origin is not None and release.get("origin_version") != origin.version:
        yield (
            f"version {release.get('origin_version')} of what reads {origin.key} files made it, and today's "
            f"is {origin.version}; mimbench weights get {entry.name} makes it anew"
        )
    elif not is_current(path, entry):
        yield (
            "the catalogue says other things of its architecture or readout by now; "
            f"mimbench weights get {entry.name} makes it anew"
        )


def faults_of_foreign(source: Path, entry: Entry) -> list[str]:
    """In what a foreign file is not of the layout of ``entry``, as sentences, all of them; none: it is.

    Writes nothing. Where a mirror's files are of another layout, that one counts too. Raises UserError where
    the file cannot be read.
    """
    found = [faults(source, as_there, origin) for as_there, origin in layouts(entry)]
    best = min(found, key=len)
    known = known_sums(entry)
    if not best and known and (digest := sha256(source)) not in known:
        best = [f"its sha256 is {digest}, and that of the released file is {' or '.join(sorted(known))}"]
    return best
