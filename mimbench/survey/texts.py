"""Papers as vectors of words: every weighting and n-gram range that the clusterings are compared over.

The survey says TF-IDF of title and abstract, and no more. What we call its way is scikit-learn's default:
words of two letters or more, lower case, no list of stop words, idf smoothed, vectors of unit length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

NGRAMS = ((1, 1), (1, 2), (1, 3))
WEIGHTINGS = ("tf-idf", "sublinear", "binary", "lsa")
TOPICS = 100  # dimensions of LSA at most; Deerwester et al. (1990) took as many for a thousand documents


def vectorizer(ngrams: tuple[int, int] = (1, 1), weighting: str = "tf-idf") -> TfidfVectorizer:
    """Counts to unit vectors. "sublinear" takes 1 + log(count), "binary" presence without idf."""
    return TfidfVectorizer(
        ngram_range=ngrams,
        sublinear_tf=weighting == "sublinear",
        binary=weighting == "binary",
        use_idf=weighting != "binary",
    )


@dataclass(frozen=True, eq=False)
class Space:
    """Where papers lie under one weighting. gram: inner products [n, n] of vectors of length 1 (or 0)."""

    gram: np.ndarray

    @cached_property
    def distances(self) -> np.ndarray:
        """Euclidean distances [n, n]."""
        lengths = np.diag(self.gram)
        squared = np.clip(lengths[:, None] + lengths[None, :] - 2 * self.gram, 0, None)
        np.fill_diagonal(squared, 0)
        return np.sqrt((squared + squared.T) / 2)

    @cached_property
    def coordinates(self) -> np.ndarray:
        """Points [n, r] with the same distances as the word vectors, r at most n: k-means needs no more."""
        values, vectors = np.linalg.eigh(self.gram)
        kept = values > values[-1] * 1e-10
        return vectors[:, kept] * np.sqrt(values[kept])

    def tree(self, method: str) -> np.ndarray:
        """SciPy's linkage matrix [n - 1, 4] for ward, complete or average linkage."""
        return linkage(squareform(self.distances, checks=False), method)


def space(texts: Sequence[str], ngrams: tuple[int, int] = (1, 1), weighting: str = "tf-idf") -> Space:
    """Where ``texts`` lie. "lsa": tf-idf cut to its leading singular vectors, then to unit length again.

    LSA keeps one dimension for four papers, 2 at least and ``TOPICS`` at most. Each text needs a word.
    """
    vectors = vectorizer(ngrams, weighting).fit_transform(texts)
    found = Space((vectors @ vectors.T).toarray())
    if weighting != "lsa":
        return found
    topics = found.coordinates[:, -min(TOPICS, max(2, len(texts) // 4)) :]  # eigh sorts upwards
    lengths = np.linalg.norm(topics, axis=1, keepdims=True)
    topics = np.divide(topics, lengths, out=np.zeros_like(topics), where=lengths > 1e-12)
    return Space(topics @ topics.T)


def shuffled(texts: Sequence[str], seed: int = 0) -> list[str]:
    """Texts in which every word occurs as often and in as many papers as in ``texts``, but in papers drawn.

    What groups of papers there were is gone: the reference for how much agreement words without groups
    give. The order of words is drawn too, so that n-grams hold nothing either.
    """
    draw = np.random.default_rng(seed)
    counter = CountVectorizer()
    counts = counter.fit_transform(texts).tocsc()
    bags: list[list[str]] = [[] for _ in texts]
    for column, word in enumerate(counter.get_feature_names_out()):
        amounts = counts.data[counts.indptr[column] : counts.indptr[column + 1]]
        for paper, amount in zip(draw.permutation(len(texts))[: len(amounts)], amounts, strict=True):
            bags[paper] += [word] * int(amount)
    return [" ".join(draw.permutation(bag)) for bag in bags]
