"""Clusterings of papers: the survey's own, and the variants it could as well have been."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.cluster.hierarchy import cut_tree
from sklearn.cluster import KMeans, SpectralClustering

from mimbench.survey.texts import NGRAMS, WEIGHTINGS, Space, space

LINKAGES = ("ward", "complete", "average")
ALGORITHMS = (*LINKAGES, "k-means", "spectral")
RESTARTS = 10  # of k-means; the best by its own criterion counts


@dataclass(frozen=True)
class Variant:
    """One way to cluster: which n-grams, how weighted, by which algorithm."""

    ngrams: tuple[int, int] = (1, 1)
    weighting: str = "tf-idf"
    algorithm: str = "ward"

    def __str__(self) -> str:
        low, high = self.ngrams
        grams = f"{low}-grams" if low == high else f"{low}-{high}-grams"
        return f"{grams}, {self.weighting}, {self.algorithm}"


SURVEY = Variant()  # TF-IDF and Ward linkage; single words, for the survey does not say
VARIANTS = tuple(Variant(n, w, a) for n in NGRAMS for w in WEIGHTINGS for a in ALGORITHMS)


def cut(tree: np.ndarray, k: int) -> np.ndarray:
    """The partition [n] of a linkage matrix into exactly ``k`` clusters."""
    return cut_tree(tree, n_clusters=k)[:, 0]


def cluster(where: Space, algorithm: str, ks: Iterable[int], seed: int = 0) -> Iterator[np.ndarray]:
    """A partition [n] for each number of clusters in ``ks``. Raises KeyError for an unknown algorithm."""
    if algorithm in LINKAGES:
        tree = where.tree(algorithm)
        yield from (cut(tree, k) for k in ks)
    elif algorithm == "k-means":
        for k in ks:
            yield KMeans(k, n_init=RESTARTS, random_state=seed).fit_predict(where.coordinates)
    elif algorithm == "spectral":
        # Cosine similarities; a trace of each keeps papers without a common word in one connected graph.
        alike = np.clip(where.gram, 0, None) + 1e-6
        for k in ks:
            model = SpectralClustering(
                k, affinity="precomputed", assign_labels="cluster_qr", random_state=seed
            )
            yield model.fit_predict(alike)
    else:
        raise KeyError(algorithm)


def ensemble(
    texts: Sequence[str], ks: Sequence[int], variants: Sequence[Variant] = VARIANTS, seed: int = 0
) -> np.ndarray:
    """Partitions of ``texts`` by every variant into every number of clusters, int [variants, ks, n]."""
    found = np.empty((len(variants), len(ks), len(texts)), np.int64)
    spaces: dict[tuple[tuple[int, int], str], Space] = {}
    for number, variant in enumerate(variants):
        words = (variant.ngrams, variant.weighting)
        if words not in spaces:
            spaces[words] = space(texts, *words)
        found[number] = list(cluster(spaces[words], variant.algorithm, ks, seed))
    return found
