"""How much clusterings agree: adjusted Rand index, consensus of many, and which papers find no place.

Adjusted Rand index: Hubert and Arabie, 1985. Consensus by evidence accumulation: Fred and Jain, 2005,
doi:10.1109/TPAMI.2005.113. A paper's consensus with a cluster: Monti et al., 2003,
doi:10.1023/A:1023949509487.
"""

from __future__ import annotations

import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from mimbench.survey.clusters import cut


def members(labels: np.ndarray) -> np.ndarray:
    """Who is in which cluster, 0 or 1 [n, k], for labels [n] of any kind."""
    _, codes = np.unique(labels, return_inverse=True)
    return np.eye(codes.max() + 1)[codes.ravel()]


def rand_matrix(partitions: np.ndarray) -> np.ndarray:
    """Adjusted Rand indices [m, m] between partitions [m, n]; 1 is the same, 0 what chance gives.

    Where two partitions both put all papers together, or all apart, the index is 1.
    """
    groups = [members(labels) for labels in partitions]
    starts = np.cumsum([0, *(group.shape[1] for group in groups)])[:-1]
    every = np.concatenate(groups, axis=1)
    n = len(every)
    shared = (every.T @ every) ** 2  # squared sizes of the overlaps of any two clusters
    sums = np.add.reduceat(np.add.reduceat(shared, starts, axis=0), starts, axis=1)
    together = (sums - n) / 2  # pairs of papers that both partitions put together
    own = np.diag(together)
    expected = np.outer(own, own) / (n * (n - 1) / 2)
    highest = (own[:, None] + own[None, :]) / 2
    span = highest - expected
    return np.divide(together - expected, span, out=np.ones_like(span), where=np.abs(span) > 1e-9)


def mean_agreement(partitions: np.ndarray) -> float:
    """The mean adjusted Rand index over all pairs of different partitions [m, n]."""
    return float(rand_matrix(partitions)[np.triu_indices(len(partitions), 1)].mean())


def consensus(partitions: np.ndarray) -> np.ndarray:
    """The share of partitions [m, n] that put two papers into one cluster, [n, n]."""
    every = np.concatenate([members(labels) for labels in partitions], axis=1)
    return every @ every.T / len(partitions)


def consensus_tree(shares: np.ndarray) -> np.ndarray:
    """Average linkage on one minus the consensus [n, n]."""
    apart = 1 - shares
    np.fill_diagonal(apart, 0)
    return linkage(squareform(apart, checks=False), "average")


def consensus_clusters(shares: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The consensus partition [n] into ``k`` clusters, and an order [n] that draws it as blocks."""
    tree = consensus_tree(shares)
    return cut(tree, k), leaves_list(tree)


def support(shares: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How often each paper is with the others of its cluster, [n] in [0, 1].

    The mean share of the clusterings in which it is together with another paper of its cluster; for one
    alone in its cluster, the share in which it is apart even from the paper it is most often with.
    """
    group = members(labels)
    own = group @ group.T
    others = own.sum(axis=1) - 1
    together = (shares * own).sum(axis=1) - np.diag(shares)
    outside = np.where(own > 0, 0.0, shares).max(axis=1, initial=0.0)
    return np.where(others > 0, together / np.maximum(others, 1), 1 - outside)
