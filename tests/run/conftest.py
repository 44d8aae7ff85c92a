"""Fixtures of the tests of planning and running."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    """A cache of prepared data that all tests here share and nothing else does."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(cache, monkeypatch):
    monkeypatch.setenv("MIMBENCH_CACHE", str(cache))


@pytest.fixture(scope="session")
def digits(cache):
    from mimbench.data import open_dataset

    return open_dataset("digits", cache=cache)


@pytest.fixture
def without_labels(digits):
    """The digits as if nobody had said what they are."""

    class Unlabelled:
        name = spec = "flat"
        task, fingerprint, classes = "classification", "0" * 64, None
        defaults = replace(digits.defaults)

    return Unlabelled()
