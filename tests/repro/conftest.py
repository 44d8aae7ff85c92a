"""A small real run, and records that somebody changed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mimbench import records
from mimbench.spec import Job, Record

from ..board.conftest import browser  # noqa: F401
from ..board.test_page_access import axe  # noqa: F401

TINY = {
    "images": 64,
    "batch_size": 32,
    "backbone": "vit_micro_patch4",
    "image_size": 8,
    "precision": "fp32",
    "baselines": False,
}


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(cache, monkeypatch):
    monkeypatch.setenv("MIMBENCH_CACHE", str(cache))


@pytest.fixture(scope="session")
def digits(cache):
    from mimbench.data import open_dataset

    return open_dataset("digits", image_size=8, cache=cache)


@pytest.fixture(scope="session")
def board(tmp_path_factory, cache) -> Path:
    """A results folder: a method that learns from a tokenizer and one that does not, with their weights."""
    import mimbench

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIMBENCH_CACHE", str(cache))
        out = tmp_path_factory.mktemp("board")
        assert mimbench.run("mae,beit", protocol="knn", out=out, **TINY).ok
        return out


@pytest.fixture
def published(board, tmp_path) -> Path:
    """The folder as it is published: records and requests, no weights."""
    folder = tmp_path / "published"
    for name in ("records", "requests"):
        shutil.copytree(board / name, folder / name)
    return folder


@pytest.fixture
def find(published) -> Callable[..., Record]:
    def find(method: str, kind: str = "evaluate") -> Record:
        (found,) = (
            r for r in records.read_folder(published) if (r.kind, r.content["method"]) == (kind, method)
        )
        return found

    return find


@pytest.fixture
def change(published) -> Callable[..., Path]:
    """Write a record with something changed; ``renamed``: under the id that its new content has."""

    def change(record: Record, renamed: bool = False, **changes: Any) -> Path:
        changed = record.model_copy(update=changes)
        if renamed:
            needs = tuple(changed.needs)
            job = Job(kind=changed.kind, name=changed.name, content=changed.content, needs=needs)
            records.path_of(published, record.id).unlink()
            changed = changed.model_copy(update={"id": job.id})
        return records.write(published, changed)

    return change
