"""Records on disk: one JSON file a job, whole or not there. Imports no torch.

``<results>/records/<job id>.json`` is the truth that tables are derived from.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from pydantic import ValidationError

from mimbench.errors import UserError
from mimbench.files import write_atomically
from mimbench.spec import FORMAT, Record

NAME = re.compile(r"[0-9a-f]{16}\.json")  # a job id; other files in the folder are not ours


def path_of(folder: Path, job_id: str) -> Path:
    """Where the record of a job lies below a results folder."""
    return Path(folder) / "records" / f"{job_id}.json"


def write(folder: Path, record: Record) -> Path:
    """Store a record below a results folder, all or nothing; its path.

    Raises ValueError for NaN or infinity anywhere in the record, UserError where nothing can be written.
    """
    try:
        text = json.dumps(record.model_dump(mode="json"), allow_nan=False, indent=1, ensure_ascii=False)
    except ValueError as error:
        raise ValueError(f"the result of {record.name} holds a number that is not finite") from error
    path = path_of(folder, record.id)
    write_atomically(path, lambda file: file.write(text.encode()))
    return path


def read(path: Path) -> Record:
    """The record in one file; raises UserError when it is damaged or of a newer format."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"cannot read the record {path}: {error.strerror or error}; check the path"
        ) from error
    except ValueError as error:  # not UTF-8, not JSON
        raise UserError(
            f"the record {path} is damaged (not valid JSON: {error}); "
            "move it away and run the same command again to redo its job"
        ) from error
    written = content.get("format") if isinstance(content, dict) else None
    if isinstance(written, int) and written > FORMAT:
        raise UserError(
            f"the record {path} was written by a newer mimbench (format {written}, this one reads up to "
            f"{FORMAT}); update mimbench"
        )
    try:
        return Record.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(
            f"the record {path} is damaged ({where}: {first['msg']}); "
            "move it away and run the same command again to redo its job"
        ) from error


def find(folder: Path, job_id: str) -> Record | None:
    """The record of a job below a results folder, None when there is none."""
    path = path_of(folder, job_id)
    return read(path) if path.exists() else None


def read_folder(folder: Path) -> list[Record]:
    """All records below a results folder, ordered by id; raises as ``read_files``."""
    return [record for _, record in read_files(folder)]


def read_files(folder: Path) -> list[tuple[Path, Record]]:
    """All records below a results folder with their files, ordered by id. Other files are left alone.

    folder: a results folder, or its ``records`` folder itself. Raises UserError where neither is there,
    and for a damaged or newer record.
    """
    folder = Path(folder)
    inner = folder / "records"
    if not inner.is_dir():
        inner = folder
    if not inner.is_dir():
        raise UserError(f"no results folder at {folder}; name the one given to mimbench run with --out")
    return [(path, read(path)) for path in sorted(inner.iterdir()) if NAME.fullmatch(path.name)]
