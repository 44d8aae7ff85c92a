"""Named tensors in safetensors files: read one by one when they are asked for, written one by one."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import safe_open
from torch import Size, Tensor

from mimbench.errors import UserError
from mimbench.files import write_atomically

REOPEN = 16 << 20  # bytes read through one mapping of a file, in whose memory they stay as long as it lasts
# The types that are written, in the order in which the format's own writer sorts them, last first
# (``Dtype`` in safetensors/src/tensor.rs).
DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
}


class Tensors(Mapping[str, Tensor]):
    """Named tensors, each read when it is asked for and kept by nobody. shapes: of all, none being read."""

    def __init__(self, shapes: Mapping[str, Size], read: Callable[[str], Tensor]):
        self.shapes = shapes
        self._read = read

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.shapes:
            raise KeyError(name)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def __contains__(self, name: object) -> bool:
        return name in self.shapes


def shapes(tensors: Mapping[str, Tensor]) -> Mapping[str, Size]:
    """Shapes by name, none of ``Tensors`` being read."""
    if isinstance(tensors, Tensors):
        return tensors.shapes
    return {name: tensor.shape for name, tensor in tensors.items()}


def finite(tensor: Tensor) -> bool:
    """Whether none of its numbers is NaN or infinite. 25 times as fast as ``isfinite().all()``."""
    if not (tensor.is_floating_point() and tensor.numel()):
        return True
    least, most = torch.aminmax(tensor.detach())  # both NaN where any is
    return bool(torch.isfinite(least) & torch.isfinite(most))


def open_tensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    """What a safetensors file holds, and its metadata. Raises SafetensorError where it is none."""
    reader = _Reader(path)
    return Tensors(reader.shapes, reader), reader.metadata


class _Reader:
    """Reads tensors out of a file that it maps into memory anew now and then, to let go of what was read."""

    def __init__(self, path: Path):
        self.path = path
        self._identity = _identity(path)
        file = self._open()
        names = file.keys()
        self.shapes = {name: Size(file.get_slice(name).get_shape()) for name in names}
        self.metadata: dict[str, str] = dict(file.metadata() or {})

    def __call__(self, name: str) -> Tensor:
        if self._left <= 0:
            if _identity(self.path) != self._identity:
                raise UserError(f"{self.path} was changed while it was read; run the same command again")
            self._open()
        tensor = self._file.get_tensor(name)
        self._left -= tensor.nbytes
        return tensor

    def _open(self) -> Any:
        self._file = safe_open(self.path, framework="pt")
        self._left = REOPEN
        return self._file


def _identity(path: Path) -> tuple[int, ...]:
    stat = os.stat(path)
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def write_tensors(
    path: Path, like: Mapping[str, Tensor], read: Callable[[str], Tensor], metadata: Mapping[str, str]
) -> str:
    """Write a safetensors file, all or nothing, and return its sha256.

    like: shapes and types by name; the tensors may be on the meta device. read: gives the tensor of a name,
    asked for once each, in the file's order. The bytes are those of ``safetensors.torch.save``.
    Raises UserError for a full disk (the old file then stays); what ``read`` raises is let through.
    """
    order = {dtype: place for place, dtype in enumerate(DTYPES)}
    names = sorted(like, key=lambda name: (-order[like[name].dtype], name))
    digest = hashlib.sha256()

    def write(file: IO[bytes]) -> None:
        for block in _blocks(names, like, read, metadata):
            digest.update(block)
            file.write(block)

    write_atomically(Path(path), write)
    return digest.hexdigest()


def _blocks(
    names: Iterable[str],
    like: Mapping[str, Tensor],
    read: Callable[[str], Tensor],
    metadata: Mapping[str, str],
) -> Iterator[bytes | memoryview]:
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for name in names:
        end = start + like[name].numel() * like[name].element_size()
        header[name] = {
            "dtype": DTYPES[like[name].dtype],
            "shape": list(like[name].shape),
            "data_offsets": [start, end],
        }
        start = end
    written = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    written += b" " * (-len(written) % 8)
    yield len(written).to_bytes(8, "little") + written
    for name in names:
        tensor = read(name)
        if (tensor.shape, tensor.dtype) != (like[name].shape, like[name].dtype):
            raise ValueError(f"{name} is {tensor.dtype} {list(tensor.shape)}, not as announced")
        if tensor.numel():
            yield memoryview(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
