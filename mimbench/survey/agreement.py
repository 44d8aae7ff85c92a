"""Which papers the shipped facts know, and how a clustering agrees with a filing made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from sklearn.metrics import homogeneity_completeness_v_measure

from mimbench.stats import holm
from mimbench.survey.bibliography import Paper, same
from mimbench.survey.stability import rand_matrix
from mimbench.survey.works import Work, works

BY_HAND = ("scheme", "masking", "target", "architecture", "objective", "contribution", "modality")
DRAWS = 999  # permutations behind a p-value


@dataclass(frozen=True)
class Agreement:
    """A clustering against classes. ``v_measure`` is also the normalised mutual information (arithmetic)."""

    criterion: str
    papers: int
    classes: int
    rand: float  # adjusted Rand index
    homogeneity: float  # 1: no cluster mixes classes
    completeness: float  # 1: no class is split over clusters
    v_measure: float
    p: float  # share of shuffled filings that agree at least as well, by Holm for all criteria


def match(papers: Sequence[Paper]) -> list[Work | None]:
    """The work each paper is: by arXiv number, else by title, else by a name before the title's colon."""
    by_number = {work.arxiv: work for work in works() if work.arxiv}
    by_title = {same(work.title): work for work in works() if work.title}
    names = [same(work.name) for work in works()]
    by_name = {same(work.name): work for work in works() if names.count(same(work.name)) == 1}

    def one(paper: Paper) -> Work | None:
        if paper.arxiv:
            return by_number.get(paper.arxiv)
        start, colon, _ = paper.title.partition(":")
        return by_title.get(same(paper.title)) or (by_name.get(same(start)) if colon else None)

    return [one(paper) for paper in papers]


def agreements(labels: np.ndarray, papers: Sequence[Paper], seed: int = 0) -> list[Agreement]:
    """``labels`` [n] against every criterion under which two or more classes have papers, and their labels.

    Combined classes ("pixels + hog") count as classes of their own, as in the survey.
    """
    known = match(papers)
    filings = {name: [str(getattr(work, name)) if work else "" for work in known] for name in BY_HAND} | {
        "label": [paper.label for paper in papers]
    }
    found = []
    for name, filing in filings.items():
        there = [i for i, words in enumerate(filing) if words]
        classes = np.array([filing[i] for i in there])
        if len(set(classes.tolist())) > 1:
            found.append(_agreement(name, labels[there], classes, seed))
    corrected = holm([entry.p for entry in found])
    return [replace(entry, p=p) for entry, p in zip(found, corrected, strict=True)]


def _agreement(name: str, labels: np.ndarray, classes: np.ndarray, seed: int) -> Agreement:
    _, codes = np.unique(classes, return_inverse=True)
    draw = np.random.default_rng(seed)
    rand = float(rand_matrix(np.stack([labels, codes]))[0, 1])
    chance = [rand_matrix(np.stack([labels, draw.permutation(codes)]))[0, 1] for _ in range(DRAWS)]
    p = (1 + sum(bool(value >= rand - 1e-12) for value in chance)) / (1 + DRAWS)
    homogeneity, completeness, v_measure = map(float, homogeneity_completeness_v_measure(codes, labels))
    return Agreement(
        name, len(labels), len(set(codes.tolist())), rand, homogeneity, completeness, v_measure, p
    )
