"""Repositories of the Hugging Face hub as its client keeps them, and a client that asks no network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """The cache folder of an offline client: what is not laid out here is not there."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        import huggingface_hub.constants

        self.folder = folder
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))

    def add(
        self, repo: str, files: Mapping[str, Any], revision: str = "main", absent: tuple[str, ...] = ()
    ) -> Path:
        """Lay out a repository; the folder of its files.

        files: paths to copy, or what is written as JSON. absent: names known not to be there.
        """
        commit = hashlib.sha1(revision.encode()).hexdigest() if revision != "main" else COMMIT
        root = self.folder / f"models--{repo.replace('/', '--')}"
        (root / "refs").mkdir(parents=True, exist_ok=True)
        (root / "refs" / revision).write_text(commit, encoding="utf-8")
        snapshot = root / "snapshots" / commit
        snapshot.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            data = content.read_bytes() if isinstance(content, Path) else json.dumps(content).encode()
            (snapshot / name).write_bytes(data)
        for name in absent:
            mark = root / ".no_exist" / commit / name
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
        return snapshot
