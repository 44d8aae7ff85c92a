from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimbench.data.splits import fingerprint, held_out
from mimbench.errors import UserError


def digests_of(contents) -> np.ndarray:
    rows = [hashlib.sha256(str(c).encode()).digest() for c in contents]
    return np.frombuffer(b"".join(rows), np.uint8).reshape(-1, 32)


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(3, 60), min_size=1, max_size=6),
    shares=st.sampled_from([(0.1,), (0.1, 0.1), (0.2, 0.1)]),
    shuffle=st.integers(0, 1000),
)
def test_a_division_is_complete_disjoint_stratified_and_blind_to_order(counts, shares, shuffle):
    labels = np.repeat(np.arange(len(counts)), counts)
    contents = np.arange(len(labels))
    parts = held_out(digests_of(contents), labels, shares, source="x")
    assert sorted(np.concatenate(parts).tolist()) == contents.tolist()
    for part, share in zip(parts, shares, strict=False):
        for label, count in enumerate(counts):
            assert (labels[part] == label).sum() == max(1, round(share * count))
    assert set(labels[parts[-1]]) == set(labels)
    assert all((np.diff(part) > 0).all() for part in parts)

    order = np.random.default_rng(shuffle).permutation(len(labels))
    again = held_out(digests_of(contents[order]), labels[order], shares, source="x")
    for part, other in zip(parts, again, strict=True):
        assert set(contents[part]) == set(contents[order][other])


@settings(max_examples=60, deadline=None)
@given(contents=st.lists(st.integers(0, 12), min_size=10, max_size=80))
def test_no_copy_of_an_image_is_held_out_from_itself(contents):
    if len(set(contents)) < 3:
        with pytest.raises(UserError, match="different"):
            held_out(digests_of(contents), None, (0.1, 0.1), source="x")
        return
    parts = held_out(digests_of(contents), None, (0.1, 0.1), source="x")
    seen = [set(np.array(contents)[part]) for part in parts]
    assert sum(map(len, seen)) == len(set(contents))
    assert all(seen)


def test_a_larger_set_keeps_most_of_a_smaller_ones_held_out_images():
    # A hash of the content decides, so adding images moves few; a shuffle would move nearly all.
    small = held_out(digests_of(range(1000)), None, (0.1,), source="x")[0]
    large = held_out(digests_of(range(1100)), None, (0.1,), source="x")[0]
    assert len(set(small) & set(large)) > 85


def test_a_fingerprint_changes_with_content_label_order_and_kind():
    digests, labels = digests_of(range(10)), np.arange(10) % 3
    swapped = labels.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    prints = {
        fingerprint(digests, labels),
        fingerprint(digests[::-1], labels[::-1]),
        fingerprint(digests, swapped),
        fingerprint(digests[:9], labels[:9]),
        fingerprint(digests, None),
        fingerprint(digests_of([*range(9), "other"]), labels),
    }
    assert len(prints) == 6
    assert fingerprint(digests.copy(), labels.astype(np.int32)) == fingerprint(digests, labels)
