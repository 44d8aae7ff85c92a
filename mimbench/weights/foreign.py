"""Reads files that others wrote, without running any of them and without holding all of them."""

from __future__ import annotations

import hashlib
import pickle
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from mimbench.errors import UserError
from mimbench.files import sha256 as file_sha256
from mimbench.tensor_files import Tensors, open_tensors
from mimbench.weights import pickles
from mimbench.weights.allowed import BUILDING, MODULES, STAND_INS
from mimbench.weights.allowed import Stored as Stored
from mimbench.weights.shards import INDEX, open_shards, parts_of

MOST_PICKLE = 256 << 20  # bytes of a pickle, which holds names and settings; the tensors lie beside it
MOST_NESTED = 8  # of dictionaries within a state dict
MAGIC = 0x1950A86A20F9469CFC6C  # how PyTorch before 1.6 begins a file (torch.serialization.MAGIC_NUMBER)
LEGACY_PICKLES = 3  # that follow it there: protocol, machine, content
# What damaged content makes torch and pickle raise.
DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
)
ARCHIVES = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!": "rar",
}


class UnreadableError(UserError):
    """A file that is no whole file of weights, or more than that, so that another copy of it may help."""


def read(path: Path) -> Any:
    """The content of a foreign file: nested containers, with tensors that are read when they are used.

    path: of a safetensors or PyTorch file, or of the ``.index.json`` of one in several parts. What else it
    holds (settings, optimiser) comes as plain containers and ``Stored``. Of a PyTorch file before 1.6 all
    tensors are read at once.

    Raises UnreadableError for what is no whole file of weights, saying what it is, for a file that wants
    anything to be called beside what builds tensors, for one that unpacks to more than it is and for formats
    that are not read.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no weights file at {path}; check the path")
    if path.name.endswith(INDEX):
        return open_shards(path, lambda part: state_dict(read(part), ((),), part))
    with open(path, "rb") as file:
        start = file.read(512)
        _refuse_other(path, start)
        if path.suffix == ".safetensors" or start[8:9] == b"{":
            return _read_safetensors(path)
        try:
            if start.startswith(b"PK"):
                return _read_zip(path)
            return _read_legacy(path, file)
        except pickles.RefusedError as error:
            raise UnreadableError(f"{path} {error}") from error
        except DAMAGE as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UnreadableError(
                f"{path} cannot be read as a PyTorch file ({reason}); fetch it again"
            ) from error


def _read_safetensors(path: Path) -> Tensors:
    try:
        return open_tensors(path)[0]
    except SafetensorError as error:
        raise UnreadableError(
            f"{path} is not a readable safetensors file ({error}); fetch it again"
        ) from error


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file; of an index, of its own bytes and the SHA-256 of each of its parts."""
    if not path.name.endswith(INDEX):
        return file_sha256(path)
    parts = (f"{part.name} {file_sha256(part)}" for part in (path, *parts_of(path)))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _refuse_other(path: Path, start: bytes) -> None:
    """UnreadableError for what downloads and folders hold in place of weights. start: the first bytes."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        raise UnreadableError(f"{path} is empty; fetch it again")
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<!--", b"<error")):
        raise UnreadableError(
            f"{path} is a web page and no file of weights: a site answered with a page (a login, a limit on "
            "downloads, a question, as Google Drive does), which was saved under this name; fetch it by hand"
        )
    if text.startswith(b"version https://git-lfs"):
        raise UnreadableError(
            f"{path} is what Git LFS keeps in place of a large file; fetch the file itself with git lfs pull"
        )
    if text.startswith((b'{"error', b'{"message')):
        raise UnreadableError(
            f"{path} is a site's message about an error and no file of weights; fetch it again"
        )
    for sign, name in ARCHIVES.items():
        if start.startswith(sign):
            raise UnreadableError(f"{path} is a {name} archive; unpack it and give the file of weights in it")
    if start[257:262] == b"ustar":
        raise UnreadableError(
            f"{path} is a tar archive; unpack it and give the file of weights in it (or, if PyTorch before "
            "0.2 wrote it, torch.load it where you trust it and torch.save its state dict)"
        )


def _read_zip(path: Path) -> Any:
    """The content of a PyTorch file since 1.6: a zip archive in which nothing is compressed."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check_archive(path, entries)
            (table,) = (entry for entry in entries if entry.filename.endswith("/data.pkl"))
            with archive.open(table) as file:
                asked = pickles.look(file)
    except zipfile.BadZipFile as error:
        raise pickles.RefusedError(f"was cut short or damaged ({error}); fetch it again") from error
    return _load(path, asked.names, mmap=True)  # tensors are then views of the file


def _check_archive(path: Path, entries: Sequence[zipfile.ZipInfo]) -> None:
    names = [entry.filename for entry in entries]
    tables = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
    if any(name.endswith("/constants.pkl") for name in names):
        raise pickles.RefusedError(
            "is a TorchScript archive, a program with its weights; where you trust it, torch.jit.load it and "
            "torch.save its state_dict()"
        )
    if len(tables) != 1:
        inside = pickles.shown(", ".join(names[:3])) or "nothing"
        raise pickles.RefusedError(
            f"is a zip archive that PyTorch did not write (it holds {inside}); unpack it and give the file "
            "of weights in it"
        )
    unpacked = sum(entry.file_size for entry in entries)
    size = path.stat().st_size
    if unpacked > size:
        raise pickles.RefusedError(
            f"unpacks to {unpacked:,} bytes from {size:,}: PyTorch compresses nothing, so somebody else "
            "packed it, perhaps to fill the memory; nothing was unpacked. Take it from a source you trust"
        )
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise pickles.RefusedError(
            "was packed anew by something that compresses, which PyTorch does not, so its tensors do not lie "
            "where they are looked for; take the file as it was published"
        )
    if tables[0].file_size > MOST_PICKLE:
        raise pickles.RefusedError(
            f"has a table of contents of {tables[0].file_size:,} bytes, which no file of weights needs; take "
            "the weights from a source you trust"
        )


def _read_legacy(path: Path, file: IO[bytes]) -> Any:
    """The content of a PyTorch file before 1.6: pickles in a row, then the tensors' bytes."""
    file.seek(0)
    if file.read(1) != b"\x80":
        raise pickles.RefusedError("is no PyTorch and no safetensors file; check the path, or fetch it again")
    file.seek(0)
    first = pickles.look(file)
    if first.value != MAGIC:
        raise pickles.RefusedError(
            "is a plain pickle and not what torch.save writes; where you trust it, load it and torch.save "
            "its state dict"
        )
    names = frozenset[str]().union(*(pickles.look(file).names for _ in range(LEGACY_PICKLES)))
    return _whole_module(path) if names & MODULES else _load(path, names, mmap=False)


def _load(path: Path, names: frozenset[str], mmap: bool) -> Any:
    stand_ins = [(STAND_INS[name], name) for name in sorted(names & STAND_INS.keys())]
    with torch.serialization.safe_globals(stand_ins):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def _whole_module(path: Path) -> Any:
    """A module as ``Stored``. ``weights_only`` refuses these, as each one's source code is kept beside it."""
    restricted = ModuleType("restricted_pickle")
    vars(restricted).update(
        Unpickler=_Unpickler, load=lambda file, **options: _Unpickler(file, **options).load()
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this source code is not the one in the file
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=restricted)


class _Unpickler(pickle.Unpickler):
    """Finds what ``pickles.look`` has let through and no other name."""

    def find_class(self, module: str, name: str) -> Any:
        full = pickles.full_name(f"{module} {name}")
        if full in STAND_INS:
            return STAND_INS[full]
        if full in BUILDING:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"the file names {full}")


def state_dict(content: Any, containers: Sequence[Sequence[str]], path: Path) -> Tensors:
    """The tensors by name that lie under the first of several ways into ``content``, a ``read``'s.

    Dictionaries within the state dict (as data2vec 2.0 keeps its average) give names with a dot between.
    Raises UserError where no way leads to tensors, naming what is there, and for tensors that are no plain
    ones of this file.
    """
    for keys in containers:
        inner = content
        for key in keys:
            inner = inner.get(key) if isinstance(inner, Mapping) else None
        if isinstance(inner, Tensors) and inner:
            return inner
        if isinstance(inner, Mapping) and any(isinstance(value, Tensor) for value in inner.values()):
            state = _flat(inner)
            if state is not None:
                return _plain(state, path)
    there = ", ".join(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
    there = pickles.shown(there, 300)
    wanted = " or ".join(".".join(keys) or "the file itself" for keys in containers)
    raise UserError(f"{path} has no state dict under {wanted}; it holds {there}")


def _flat(state: Mapping[Any, Any], depth: int = 0) -> dict[str, Tensor] | None:
    """Tensors by full name; None where there is anything else."""
    flat: dict[str, Tensor] = {}
    for name, value in state.items():
        if isinstance(value, Tensor):
            flat[str(name)] = value.detach()
            continue
        inner = _flat(value, depth + 1) if isinstance(value, Mapping) and depth < MOST_NESTED else None
        if inner is None:
            return None
        flat |= {f"{name}.{rest}": tensor for rest, tensor in inner.items()}
    return flat


def _plain(state: Mapping[str, Tensor], path: Path) -> Tensors:
    size = path.stat().st_size
    for name, tensor in state.items():
        taken = tensor.numel() * tensor.element_size()
        if taken > size:
            raise UnreadableError(
                f"{path} says that {pickles.shown(name)!r} takes {taken:,} bytes, more than it has itself; "
                "take the weights from a source you trust"
            )
    return Tensors({name: tensor.shape for name, tensor in state.items()}, state.__getitem__)
