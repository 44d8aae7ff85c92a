"""The survey's automatic clustering of a bibliography, and how far it can be trusted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
from sklearn.metrics import silhouette_score

from mimbench.errors import UserError
from mimbench.survey import stability
from mimbench.survey.agreement import Agreement, agreements, match
from mimbench.survey.bibliography import Bibliography
from mimbench.survey.clusters import ALGORITHMS, SURVEY, VARIANTS, Variant, cut, ensemble
from mimbench.survey.texts import NGRAMS, WEIGHTINGS, Space, shuffled, space, vectorizer
from mimbench.survey.works import Work

NAMED = 18  # clusters that the survey names in its dendrogram: the most that are tried unasked
TRIED = (2, 3, 4, 5, 6, 8, 10, 12, 15, NAMED)
TERMS = 6  # words that describe a cluster
QUANTILE = 0.95  # of the papers of shuffled words, above which a paper's place counts as stable


@dataclass(frozen=True)
class Choice:
    """What a number of clusters gives."""

    k: int
    silhouette: float  # of the survey's clustering, in [-1, 1]
    rand: float  # mean adjusted Rand index of all variants
    rand_chance: float  # the same for shuffled words
    support: float  # mean over the papers of their support, see stability.support
    support_chance: float  # the same for shuffled words


@dataclass(frozen=True, eq=False)
class Study:
    """Everything the reports draw. n papers, m variants."""

    bibliography: Bibliography
    k: int
    asked: bool  # whether k was the user's
    choices: tuple[Choice, ...]
    tree: np.ndarray  # Ward linkage of the survey's vectors, [n - 1, 4]
    labels: np.ndarray  # the survey's clustering, 0 to k - 1 by size, [n]
    shares: np.ndarray  # consensus of the variants, [n, n]
    consensus: np.ndarray  # consensus clustering, 0 to k - 1 by size, [n]
    order: np.ndarray  # of the consensus matrix, [n]
    support: np.ndarray  # of each paper in its consensus cluster, [n]
    least: float  # support from which on a paper's place counts as stable
    rand: np.ndarray  # adjusted Rand indices of the variants, [m, m]
    chance: np.ndarray  # the same for shuffled words, [m, m]
    terms: tuple[tuple[str, ...], ...]  # of the survey's clusters
    consensus_terms: tuple[tuple[str, ...], ...]
    agreements: tuple[Agreement, ...]  # of the survey's clustering
    consensus_agreements: tuple[Agreement, ...]
    works: tuple[Work | None, ...]  # which paper is which work

    @property
    def stable(self) -> np.ndarray:
        """Which papers have a stable place, bool [n]."""
        return self.support >= self.least

    def between(self, axis: str, value: object) -> tuple[float, float]:
        """Mean adjusted Rand index of the variants with this value to all others, and by chance."""
        chosen = np.array([getattr(variant, axis) == value for variant in VARIANTS])
        pairs = (chosen[:, None] | chosen[None, :]) & ~np.eye(len(chosen), dtype=bool)
        return float(self.rand[pairs].mean()), float(self.chance[pairs].mean())

    def changed(self) -> list[tuple[Variant, float]]:
        """The survey's way with one thing changed, and its agreement with the survey's way."""
        start = VARIANTS.index(SURVEY)
        near = [
            *(Variant(ngrams=n) for n in NGRAMS[1:]),
            *(Variant(weighting=w) for w in WEIGHTINGS[1:]),
            *(Variant(algorithm=a) for a in ALGORITHMS[1:]),
        ]
        return [(variant, float(self.rand[start, VARIANTS.index(variant)])) for variant in near]


def study(
    bibliography: Bibliography,
    k: int | None = None,
    seed: int = 0,
    report: Callable[[str], object] = lambda step: None,
) -> Study:
    """Cluster a bibliography the survey's way and every other, and compare.

    k: number of clusters; None takes the one of ``TRIED`` whose consensus gives the papers most support
    beyond what it gives shuffled words. Deterministic in ``seed``. Raises UserError for a k that does not
    fit.
    """
    texts = [paper.text for paper in bibliography.papers]
    n = len(texts)
    if k is not None and not 2 <= k < n:
        raise UserError(f"{k} clusters of {n} papers: ask for 2 to {n - 1}")
    ks = [k] if k else [tried for tried in TRIED if tried <= max(2, n // 2)]
    report(f"{len(VARIANTS)} clusterings of {n} papers into {', '.join(map(str, ks))} clusters")
    found = ensemble(texts, ks, seed=seed)
    report("the same of shuffled words")
    by_chance = ensemble(shuffled(texts, seed), ks, seed=seed)
    report("comparing")
    home = space(texts, SURVEY.ngrams, SURVEY.weighting)
    tree = home.tree(SURVEY.algorithm)
    placed = [_placed(found[:, i], tried) for i, tried in enumerate(ks)]
    nowhere = [_placed(by_chance[:, i], tried) for i, tried in enumerate(ks)]
    choices = tuple(
        Choice(
            tried,
            silhouette(home, cut(tree, tried)),
            stability.mean_agreement(found[:, i]),
            stability.mean_agreement(by_chance[:, i]),
            float(placed[i].support.mean()),
            float(nowhere[i].support.mean()),
        )
        for i, tried in enumerate(ks)
    )
    at = max(range(len(ks)), key=lambda i: choices[i].support - choices[i].support_chance)
    labels = by_size(cut(tree, ks[at]))
    return Study(
        bibliography=bibliography,
        k=ks[at],
        asked=k is not None,
        choices=choices,
        tree=tree,
        labels=labels,
        shares=placed[at].shares,
        consensus=placed[at].labels,
        order=placed[at].order,
        support=placed[at].support,
        least=max(0.5, float(np.quantile(nowhere[at].support, QUANTILE))),
        rand=stability.rand_matrix(found[:, at]),
        chance=stability.rand_matrix(by_chance[:, at]),
        terms=top_terms(texts, labels),
        consensus_terms=top_terms(texts, placed[at].labels),
        agreements=tuple(agreements(labels, bibliography.papers, seed)),
        consensus_agreements=tuple(agreements(placed[at].labels, bibliography.papers, seed)),
        works=tuple(match(bibliography.papers)),
    )


@dataclass(frozen=True, eq=False)
class _Placed:
    shares: np.ndarray
    labels: np.ndarray
    order: np.ndarray
    support: np.ndarray


def _placed(partitions: np.ndarray, k: int) -> _Placed:
    """The consensus of partitions [m, n] into k clusters, and each paper's support in it."""
    shares = stability.consensus(partitions)
    groups, order = stability.consensus_clusters(shares, k)
    labels = by_size(groups)
    return _Placed(shares, labels, order, stability.support(shares, labels))


def silhouette(where: Space, labels: np.ndarray) -> float:
    """Mean silhouette of a partition by Euclidean distance, NaN where it is not defined."""
    if not 1 < len(set(labels.tolist())) < len(labels):
        return float("nan")
    return float(silhouette_score(where.distances, labels, metric="precomputed"))


def by_size(labels: np.ndarray) -> np.ndarray:
    """Clusters renumbered from 0, the largest first, equal ones by their first paper."""
    names, first, sizes = np.unique(labels, return_index=True, return_counts=True)
    order = np.lexsort((first, -sizes))
    number = {int(names[old]): new for new, old in enumerate(order)}
    return np.array([number[int(label)] for label in labels])


def top_terms(texts: Sequence[str], labels: np.ndarray) -> tuple[tuple[str, ...], ...]:
    """The words that set each cluster apart: highest mean TF-IDF within minus outside, none but describing.

    Function words (scikit-learn's English list) take part in the clustering, as in the survey, but
    describe nothing and are not named.
    """
    model = vectorizer()
    vectors = model.fit_transform(texts).toarray()
    words = model.get_feature_names_out()
    naming = np.array([word not in ENGLISH_STOP_WORDS and not word.isdigit() for word in words])
    found = []
    for label in range(int(labels.max()) + 1):
        inside = labels == label
        apart = vectors[inside].mean(axis=0) - (vectors[~inside].mean(axis=0) if (~inside).any() else 0)
        best = np.argsort(-np.where(naming, apart, -np.inf), kind="stable")[:TERMS]
        found.append(tuple(str(words[i]) for i in best if naming[i] and apart[i] > 0))
    return tuple(found)
