"""The folder for what can be had again: readings of files, prepared pixels, fetched weights."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mimbench.errors import UserError
from mimbench.files import FULL


def cache_folder(kind: str, cache: Path | None = None) -> Path:
    """``cache``, else $MIMBENCH_CACHE, else ~/.cache/mimbench; in it the folder ``kind``, created."""
    root = cache or os.environ.get("MIMBENCH_CACHE") or Path.home() / ".cache" / "mimbench"
    folder = Path(root).expanduser() / kind
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return folder


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns a failure to write below ``folder`` into a UserError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise UserError(
                f"there is no room left in {folder} ({os.strerror(error.errno or 0)}); free some, or set "
                "MIMBENCH_CACHE to a folder on a larger disk; what was finished before is kept"
            ) from error
        reason = error.strerror or str(error)
        raise UserError(
            f"{folder} cannot be written ({reason}); set MIMBENCH_CACHE to a folder that can"
        ) from error


def free_bytes(folder: Path) -> int:
    """Bytes left on the disk of ``folder``."""
    return shutil.disk_usage(folder).free
