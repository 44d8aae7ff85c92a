"""``parquet:PATH``: tables with the columns ``image`` (encoded bytes) and ``label`` (integers).

PATH is one file, or a folder (or its subfolder ``data``) with ``train.parquet`` or shards
``train-*.parquet``, likewise ``val``, ``valid`` or ``validation``, and ``test``. ``image`` is the struct
{bytes, path} Hugging Face writes, or plain binary. Class names come from ``classes.json`` (a list, or an
object with a list "classes"), or from the metadata Hugging Face puts into the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mimbench.data.images import BrokenImageError
from mimbench.data.sources.base import Listing, Part, Units, existing, local_name
from mimbench.data.sources.labels import labelled_listing
from mimbench.errors import UserError

PART_NAMES = {"train": ("train",), "validation": ("validation", "valid", "val"), "test": ("test",)}


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split()).rstrip(".")
    return UserError(
        f"{path} cannot be read as a parquet table ({reason}); it may be cut short, fetch or write it again"
    )


class _Table(Part):
    """The rows of one or more parquet files, in order of file name and row."""

    seekable = False  # a row costs its whole row group

    def __init__(self, root: Path, files: list[Path]):
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._files = files
        self._groups: list[tuple[int, int, range]] = []  # (file, row group, samples)
        self.identity = f"parquet:{':'.join(map(str, files))}"
        self.metadata: dict[str, Any] = {}
        units: list[tuple[str, os.stat_result | None, int]] = []
        labels, start = [], 0
        for number, path in enumerate(files):
            try:
                with pq.ParquetFile(path) as table:
                    schema = table.schema_arrow
                    self._image_column = _image_column(path, schema)
                    self.metadata = self.metadata or _hugging_face(schema.metadata or {})
                    for group in range(table.num_row_groups):
                        rows = table.metadata.row_group(group).num_rows
                        self._groups.append((number, group, range(start, start + rows)))
                        start += rows
                    if "label" in schema.names:
                        labels.append(_labels(path, table.read(columns=["label"])["label"]))
                    name, rows = path.relative_to(root).as_posix(), table.metadata.num_rows
                    units.append((name, path.stat(), rows))
            except (pa.ArrowException, OSError) as error:
                raise _unreadable(path, error) from error
        if labels and len(labels) != len(files):
            raise UserError(f"some of the tables {files[0].name} ... {files[-1].name} have no column 'label'")
        self.units = Units.of(units)
        self.labels = np.concatenate(labels) if labels else None
        self._starts = np.cumsum([0] + [rows for _, _, rows in units])
        if not len(self):
            raise UserError(f"{files[0]} has no rows; a dataset needs images")

    def __len__(self) -> int:
        return int(self._starts[-1])

    def name(self, index: int) -> str:
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return f"{self._files[number].name} row {index - self._starts[number]}"

    def pieces(self) -> list[range]:
        return [rows for _, _, rows in self._groups if len(rows)]

    def read(self, piece: range) -> Iterator[bytes | BrokenImageError]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        number, group = next((n, g) for n, g, rows in self._groups if rows == piece)
        path = self._files[number]
        try:
            with pq.ParquetFile(path) as table:
                batches = table.iter_batches(
                    batch_size=64, row_groups=[group], columns=[self._image_column], use_threads=False
                )
                for batch in batches:
                    column = batch.column(0)
                    if pa.types.is_struct(column.type):
                        column = column.field("bytes")
                    for value in column:
                        yield BrokenImageError("no bytes") if not value.is_valid else value.as_py()
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(path, error) from error

    def encoded(self, index: int) -> bytes:
        piece = next(rows for _, _, rows in self._groups if index in rows)
        content = next(c for i, c in zip(piece, self.read(piece), strict=True) if i == index)
        if isinstance(content, BrokenImageError):
            raise OSError(str(content))
        return content


def _image_column(path: Path, schema: Any) -> str:
    import pyarrow as pa

    def binary(kind: Any) -> bool:
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    if "image" not in schema.names:
        raise UserError(
            f"{path} has no column 'image' but {', '.join(schema.names) or 'none'}; "
            "name the column of encoded images so"
        )
    kind = schema.field("image").type
    if binary(kind):
        return "image"
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and binary(kind.field("bytes").type):
        return "image.bytes"
    raise UserError(
        f"the column 'image' of {path} is {kind}; expected binary, or a struct with a binary field 'bytes'"
    )


def _labels(path: Path, column: Any) -> np.ndarray:
    import pyarrow as pa

    if not pa.types.is_integer(column.type) or column.null_count:
        found = f"{column.null_count} missing values" if column.null_count else str(column.type)
        raise UserError(f"the column 'label' of {path} has {found}; expected an integer in every row")
    return column.to_numpy().astype(np.int64)


def _hugging_face(metadata: dict[bytes, bytes]) -> dict[str, Any]:
    """The feature description Hugging Face ``datasets`` leaves in a file, or nothing."""
    try:
        return dict(json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"])
    except (ValueError, LookupError, TypeError):
        return {}


def _class_names(folder: Path, table: _Table) -> tuple[str, ...] | None:
    path = folder / "classes.json"
    if path.is_file():
        try:
            names = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path} is not JSON ({error}); it should list the class names") from error
        names = names.get("classes") if isinstance(names, dict) else names
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise UserError(f'{path} should be a list of names or an object with a list "classes"')
        return tuple(names)
    feature = table.metadata.get("label")
    names = feature.get("names") if isinstance(feature, dict) else None
    return tuple(map(str, names)) if names else None


def _files(folder: Path) -> dict[str, list[Path]]:
    found = {}
    for part, stems in PART_NAMES.items():
        for stem in stems:
            files = sorted({*folder.glob(f"{stem}.parquet"), *folder.glob(f"{stem}-*.parquet")})
            if files:
                found[part] = files
                break
    return found


def parquet(argument: str) -> Listing:
    """Parquet tables with the columns image (bytes) and label."""
    path = existing("parquet", argument)
    if path.is_file():
        folder, files = path.parent, {"train": [path]}
    else:
        folder, files = path, _files(path)
        if not files and (path / "data").is_dir():
            files = _files(path / "data")
    if "train" not in files:
        there = sorted(p.name for p in path.iterdir())[:10]
        raise UserError(
            f"{argument} holds no train.parquet or train-*.parquet "
            f"(but {', '.join(there) if there else 'nothing'}); name the training table so, or give one file"
        )
    tables = {part: _Table(folder, paths) for part, paths in files.items()}
    classes = _class_names(folder, tables["train"])
    return labelled_listing(local_name("parquet", path), dict(tables), classes)
