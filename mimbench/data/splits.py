"""Which sample belongs to which split, decided by content alone: no path, order or clock has a say."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from mimbench import rng
from mimbench.errors import UserError

SEED = rng.salt("mimbench split 1")


def held_out(
    digests: np.ndarray,
    labels: np.ndarray | None,
    shares: tuple[float, ...],
    *,
    source: str,
    classes: Sequence[str] | None = None,
) -> list[np.ndarray]:
    """Divides samples, stratified by label, into the held-out ``shares`` and, last, the rest.

    digests: uint8 [N, 32], of the samples' content; labels: int64 [N] or None. Returns ascending indices.
    Within a class samples are ordered by a seeded hash of their content, and equal ones stay together, so
    that no image is in two of the splits. ``source`` and ``classes`` are names for the message. Raises UserError where a class has too few different samples to
    leave one in each.
    """
    content = np.ascontiguousarray(digests[:, :8]).view(np.uint64)[:, 0]
    order_keys = rng.sample_keys(SEED, 0, content).view(np.uint64)
    strata = np.zeros(len(digests), np.int64) if labels is None else labels
    chosen: list[list[np.ndarray]] = [[] for _ in range(len(shares) + 1)]
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        members = members[np.argsort(order_keys[members], kind="stable")]
        # Ends of the runs of equal content: the only places where it may be cut.
        cuts = np.append(np.flatnonzero(np.diff(order_keys[members])) + 1, len(members))
        if len(cuts) <= len(shares):
            kind = f"its class {classes[stratum]}" if classes is not None else "it"
            raise UserError(
                f"{source} cannot be divided: {kind} has {len(cuts)} different "
                f"image{'s' * (len(cuts) != 1)}, at least {len(shares) + 1} are needed to hold some out; "
                "add images or give the splits yourself"
            )
        start, used = 0, 0
        for place, share in enumerate(shares):
            wanted = start + max(1, round(share * len(members)))
            cut = int(np.searchsorted(cuts, wanted))
            cut = min(max(cut, used), len(cuts) - 1 - (len(shares) - place))  # leave one for each later
            chosen[place].append(members[start : cuts[cut]])
            start, used = int(cuts[cut]), cut + 1
        chosen[-1].append(members[start:])
    return [np.sort(np.concatenate(indices)) for indices in chosen]


def fingerprint(digests: np.ndarray, labels: np.ndarray | None) -> str:
    """SHA-256, in hex, over (content, label) of every sample, order included."""
    rows = np.ascontiguousarray(digests, np.uint8)
    if labels is not None:
        rows = np.concatenate([rows, labels.astype("<i8").view(np.uint8).reshape(-1, 8)], axis=1)
    kind = b"labelled" if labels is not None else b"unlabelled"
    return hashlib.sha256(b"mimbench split 1 " + kind + rows.tobytes()).hexdigest()
