"""Files that are there whole or not at all. Imports no torch."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from mimbench.errors import UserError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})  # the disk, the quota, the size limit
WAIT_SECONDS = 1.0  # between two words on what a lock is waited for


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let ``write`` fill ``path``, all or nothing: until everything is on disk the old file stays.

    Raises UserError when the disk is full or the folder cannot be written; the old file is unharmed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # a read-only or vanished folder: the error above says so
            temporary.unlink(missing_ok=True)


def unwritable(path: Path, error: OSError) -> UserError:
    """The sentence for a path that cannot be written."""
    if error.errno in FULL:
        cause, remedy = "the disk is full", "free some space"
    else:
        cause, remedy = error.strerror or str(error), "name a folder you may write to"
    return UserError(
        f"cannot write {path}: {cause}; {remedy} and run the same command again "
        "(what was there before is unharmed)"
    )


def make_folder(path: Path) -> Path:
    """Create a folder and its parents; raises UserError where that is not possible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error
    return path


def sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut (POSIX; elsewhere folders cannot be opened)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def locked(path: Path, waits: Callable[[], object]) -> Iterator[None]:
    """Hold the lock file ``path``, which no other process of any machine can hold meanwhile.

    It dies with its holder. waits: called about every second while somebody else has it.
    Raises UserError where the file cannot be written.
    """
    lock = FileLock(path)
    while not lock.is_locked:
        try:
            lock.acquire(timeout=WAIT_SECONDS)
        except Timeout:
            waits()
        except OSError as error:
            raise unwritable(path, error) from error
    try:
        yield
    finally:
        lock.release()


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
