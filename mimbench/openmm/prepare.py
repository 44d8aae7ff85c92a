"""Makes mmengine and what stands on it ready to be imported, and keeps it quiet."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Literal

import mimbench.torchvision_compat  # noqa: F401  isort: skip


@cache
def prepare() -> None:
    """To be called before anything of mmdet or mmseg is imported. A second call does nothing.

    Where mmcv has no compiled operators, those of torchvision stand in (``mimbench.openmm.extension``).
    """
    with quiet():
        from mmengine.logging import MMLogger

        # The current logger is the one made last. mmengine's own would print every note to stdout.
        MMLogger.get_instance("mimbench", log_level="ERROR")
        if operators() == "stand-in":
            from mimbench.openmm import extension

            extension.install()


def operators() -> Literal["compiled", "stand-in"]:
    """Where mmcv's operators come from here. Raises ModuleNotFoundError without mmcv."""
    found = find_spec("mmcv._ext")
    return "stand-in" if found is None or found.loader is None else "compiled"


@contextmanager
def scoped(scope: str) -> Iterator[None]:
    """What is built inside by its name is looked up in the registries of ``scope``, "mmdet" or "mmseg"."""
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope(scope):
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings of packages whose last release is older than what they warn about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
