"""A few labelled images of each class, drawn several times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mimbench import rng


@dataclass(frozen=True, eq=False)
class Size:
    """How many labelled images there are. counts: of each class, int64 [classes]."""

    label: str  # "5shot", "1pct"
    counts: np.ndarray
    draws: int

    def indices(self, split: str, labels: np.ndarray, seed: int) -> list[np.ndarray]:
        """The images of each draw, sorted; of a class with fewer than asked for, all.

        Draws depend on the seed, the split's name and their number alone, so that they are the same for
        every method, and those of a small size lie within those of a larger one.
        """
        found = []
        for draw in range(self.draws):
            order = rng.numpy_generator(seed, f"{split}, draw {draw}").permutation(len(labels))
            by_class = order[np.argsort(labels[order], kind="stable")]
            first = np.searchsorted(labels[by_class], np.arange(len(self.counts)))
            place = np.arange(len(labels)) - first[labels[by_class]]
            found.append(np.sort(by_class[place < self.counts[labels[by_class]]]))
        return found


def sizes(
    shots: Sequence[int], shares: Sequence[float], kept: int, draws: int, labels: np.ndarray, classes: int
) -> tuple[list[Size], list[str]]:
    """The different sizes that train allows, and sentences on what was left out or is smaller than asked.

    kept: the number of shots that is never left out. labels: of train, int64 [N].
    """
    there = np.bincount(labels, minlength=classes)
    asked = [(f"{k}shot", np.minimum(k, there)) for k in dict.fromkeys([kept, *sorted(shots)])]
    asked += [
        (f"{100 * share:g}pct", np.minimum(np.maximum(1, np.rint(share * there)), there).astype(np.int64))
        for share in sorted(set(shares))
    ]
    found: list[Size] = []
    notes = []
    for label, counts in asked:
        twin = [size.label for size in found if np.array_equal(size.counts, counts)]
        if twin:
            notes.append(f"{label} left out: it is {twin[0]}")
        elif np.array_equal(counts, there) and found:
            notes.append(f"{label} left out: it is the whole of train")
        else:
            whole = np.array_equal(counts, there)
            found.append(Size(label, counts, 1 if whole else draws))
            short = int((counts < counts.max()).sum())
            if whole:
                notes.append(f"{label} is the whole of train: there is one draw")
            elif label.endswith("shot") and short:
                notes.append(f"{label}: {short} of {classes} classes have fewer images and give them all")
    return found, notes
