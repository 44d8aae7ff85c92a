from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mimbench.board import Layout, write

from .browsing import CHROMIUM, Watched, fill
from .synthetic import Board


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path)


@pytest.fixture(scope="module")
def browser() -> Iterator:
    if CHROMIUM is None:
        if os.environ.get("MIMBENCH_REQUIRE_BROWSER") == "1":
            pytest.fail("MIMBENCH_REQUIRE_BROWSER=1, but there is no Chromium on PATH")
        pytest.skip("no Chromium on PATH")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield started
        started.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    board = Board(tmp_path_factory.mktemp("board"))
    fill(board)
    (html,) = write(board.folder, ("html",), layout=Layout(first=("linprobe", "knn")))
    return html


@pytest.fixture
def watched(browser, path) -> Iterator[Watched]:
    opened = Watched(browser, path)
    yield opened
    assert opened.complaints == []
    assert opened.requests == [path.as_uri()]  # nothing else was asked for
    opened.page.close()
