"""Small made-up datasets: images of noise, so that any mix-up of samples or pixels shows."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("MIMBENCH_CACHE", str(folder))
    monkeypatch.delenv("MIMBENCH_STORE_LIMIT_GB", raising=False)
    return folder


@pytest.fixture
def noise() -> Callable[..., np.ndarray]:
    def make(seed: int, height: int = 12, width: int = 12) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)

    return make


@pytest.fixture
def encoded(noise: Callable[..., np.ndarray]) -> Callable[..., bytes]:
    """The bytes of a noise image: PNG, which gives the pixels back exactly, or another format."""

    def make(seed: int, height: int = 12, width: int = 12, format: str = "PNG") -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(noise(seed, height, width)).save(buffer, format)
        return buffer.getvalue()

    return make


@pytest.fixture
def make_folder(tmp_path: Path, encoded: Callable[..., bytes]) -> Callable[..., Path]:
    """Writes ``counts`` of images below tmp_path/name: {"train/cats": 10}. Every image is another."""

    def make(name: str, counts: dict[str, int], **size: int) -> Path:
        seed = 0
        for folder, count in counts.items():
            (tmp_path / name / folder).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                path = tmp_path / name / folder / f"{number:03}.png"
                path.write_bytes(encoded(seed, **size))
                seed += 1
        return tmp_path / name

    return make


@pytest.fixture
def make_parquet(tmp_path: Path, encoded: Callable[..., bytes]) -> Callable[..., Path]:
    """Writes a table of ``labels`` (None: no column) as tmp_path/name; image i is noise of seed first + i."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def make(
        name: str,
        labels: list[int] | None,
        count: int | None = None,
        first: int = 0,
        plain: bool = False,
        row_group: int = 7,
        **size: int,
    ) -> Path:
        contents = [encoded(first + i, **size) for i in range(len(labels) if labels is not None else count)]
        column = contents if plain else [{"bytes": c, "path": f"{i}.png"} for i, c in enumerate(contents)]
        columns = {"image": column} | ({} if labels is None else {"label": labels})
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path, row_group_size=row_group)
        return path

    return make
