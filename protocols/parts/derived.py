"""A data set with another test split, so that any protocol can be evaluated on what was made of the first."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mimbench.data import Dataset


class Derived:
    """A data set whose test split is another one; everything else is the data set's own.

    derive: the test split to the one that is handed out in its place. The new split says how it is called,
    not "test": by that name other processes would take the data set's own. size: how many images it has.
    Each opening opens the data set's own test split too, where openings are counted.
    """

    def __init__(self, data: Dataset, derive: Callable[[Any], Any], size: int):
        self._data, self._derive, self.test_size = data, derive, size

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)

    def open_test(self) -> Any:
        """The derived split."""
        return self._derive(self._data.open_test())
