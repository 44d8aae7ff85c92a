"""Which class of a data set is meant by a WordNet id, a number of ImageNet or a name."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from functools import cache

import mimbench.torchvision_compat  # noqa: F401  isort: skip
from timm.data import ImageNetInfo

WORDNET_ID = re.compile(r"n\d{8}")


@cache
def wordnet_ids() -> tuple[str, ...]:
    """Of the 1000 classes of ImageNet, in their order."""
    return tuple(ImageNetInfo("imagenet-1k").label_names())


@cache
def _by_name() -> dict[str, str]:
    """WordNet ids by names: "tench, tinca tinca", "tench" and "tinca tinca"; none that two classes share."""
    info = ImageNetInfo("imagenet-1k")
    found: dict[str, set[str]] = defaultdict(set)
    whole: dict[str, set[str]] = defaultdict(set)
    for number, wordnet_id in enumerate(wordnet_ids()):
        description = info.index_to_description(number).lower()
        whole[description].add(wordnet_id)
        for name in description.split(", "):
            found[name].add(wordnet_id)
    found |= whole  # "maillot" is the whole of one class and a part of another: the first is meant
    return {name: next(iter(ids)) for name, ids in found.items() if len(ids) == 1}


def wordnet_id(name: str) -> str | None:
    """The WordNet id of a class of ImageNet: ``name`` itself, or that of the one class so called."""
    if WORDNET_ID.fullmatch(name):
        return name
    return _by_name().get(name.replace("_", " ").strip().lower())


class ClassNames:
    """The classes of a data set, to be found by what they are called elsewhere."""

    def __init__(self, classes: Sequence[str]):
        self._exact = {name: number for number, name in enumerate(classes)}
        ids: dict[str, list[int]] = defaultdict(list)
        for number, name in enumerate(classes):
            if (of := wordnet_id(name)) is not None:
                ids[of].append(number)
        self._by_id = {of: numbers[0] for of, numbers in ids.items() if len(numbers) == 1}

    def find(self, name: str) -> int | None:
        """The class of this very name, or of the same WordNet id; None where there is none."""
        if name in self._exact:
            return self._exact[name]
        of = wordnet_id(name)
        return None if of is None else self._by_id.get(of)

    def numbered(self, names: Sequence[str]) -> bool:
        """Whether ``names`` are numbers of ImageNet's classes and not names of this data set's."""
        return all(name.isdigit() and int(name) < len(wordnet_ids()) for name in names) and not any(
            name in self._exact for name in names
        )
