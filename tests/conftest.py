"""Shared by all tests: one thread (two thrash on a shared machine), no network, fixed seeds."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest


@pytest.fixture(autouse=True)
def one_thread_and_seeded() -> None:
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
