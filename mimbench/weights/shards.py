"""Weights in several files with an index, as the Hugging Face hub keeps large ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path, PureWindowsPath

from mimbench.errors import UserError
from mimbench.tensor_files import Tensors

INDEX = ".index.json"
MOST_INDEX = 64 << 20  # bytes


def open_shards(path: Path, read: Callable[[Path], Tensors]) -> Tensors:
    """The tensors that the index ``path`` lists (``model.safetensors.index.json``). read: of one file.

    Raises UserError for an index that is none, that leads out of its folder or that its files belie.
    """
    listed = _listed(path)
    parts = {shard: read(_beside(path, shard)) for shard in sorted(set(listed.values()))}
    found = {(name, shard) for shard, part in parts.items() for name in part}
    if apart := sorted({name for name, _ in found ^ listed.items()}):
        raise UserError(
            f"{path} and its files do not agree on where {', '.join(apart[:8])} lies; fetch all of them again"
        )
    return Tensors(
        {name: parts[shard].shapes[name] for name, shard in listed.items()},
        lambda name: parts[listed[name]][name],
    )


def parts_of(path: Path) -> list[Path]:
    """The files of the index ``path``. UserError as ``open_shards``."""
    return [_beside(path, shard) for shard in sorted(set(_listed(path).values()))]


def _listed(path: Path) -> dict[str, str]:
    """Names of tensors -> names of files."""
    try:
        if path.stat().st_size > MOST_INDEX:
            raise ValueError(f"more than {MOST_INDEX:,} bytes")
        listed = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        if not listed or not all(isinstance(shard, str) for shard in listed.values()):
            raise ValueError("its weight_map names no files")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is not the index of a file in parts ({error}); fetch it again") from error
    return dict(listed)


def _beside(path: Path, shard: str) -> Path:
    """Where a file of the index lies: in the same folder, or where the index itself is a link to.

    The Hugging Face hub's cache is made of such links. Any other way out of the folder is refused.
    """
    plain = PureWindowsPath(shard).name == shard and shard not in (".", "..") and "\0" not in shard
    there = path.parent / shard
    folders = {path.parent.resolve(), path.resolve().parent}
    if not plain or shard.endswith(INDEX) or there.resolve().parent not in folders:
        raise UserError(
            f"{path} names {shard!r}, which does not lie in its folder; take the weights from a source you "
            "trust"
        )
    return there
