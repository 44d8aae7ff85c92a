"""Right or wrong, or a number an image: what is packed comes back, what is damaged is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimbench.outcomes import Hits, Outcomes, Values, unpack

finite = st.floats(allow_nan=False, allow_infinity=False, width=64)


def stored(outcomes: Outcomes) -> Outcomes:
    """As they come out of a record on disk."""
    return unpack(json.loads(json.dumps(outcomes.pack(), allow_nan=False)))


@given(st.lists(st.booleans(), max_size=40))
def test_every_hit_survives_packing(hits):
    again = stored(Hits(np.array(hits, bool)))
    assert isinstance(again, Hits)
    assert again.hits.tolist() == hits


@given(st.lists(finite, max_size=20))
def test_every_digit_of_a_value_survives_packing(values):
    again = stored(Values(np.array(values, np.float64)))
    assert isinstance(again, Values)
    np.testing.assert_array_equal(again.values, np.array(values, np.float64))


def test_records_from_before_there_were_kinds_are_hits():
    packed = Hits(np.array([True, False, True])).pack()
    del packed["kind"]
    assert unpack(packed).score == pytest.approx(2 / 3)


def test_single_precision_is_stored_as_such():
    single = Values(np.random.default_rng(0).random(1000).astype(np.float32)).pack()
    assert single["values"]["dtype"] == "<f4"
    assert len(single["values"]["zlib"]) < 1000 * 4 * 4 / 3


@pytest.mark.parametrize(
    "packed",
    [
        {"n": 3},
        {"n": 3, "bits": "???"},
        {"n": 30, "bits": "/w=="},
        {"n": -1, "bits": ""},
        {"n": None, "bits": "/w=="},
        {"kind": "values"},
        {"kind": "values", "values": {"shape": [2], "dtype": "<f8", "zlib": "AAAA"}},
        {"kind": "values", "values": {"shape": [2], "dtype": "nonsense", "zlib": "eJwDAAAAAAE="}},
        {"kind": "values", "values": {"shape": [2], "dtype": "<f8", "zlib": "eJwDAAAAAAE="}},
        {"kind": "values", "values": {"shape": [0], "dtype": "O", "zlib": "eJwDAAAAAAE="}},
    ],
)
def test_damaged_outcomes_are_refused(packed):
    with pytest.raises(ValueError, match="damaged"):
        unpack(packed)


def test_a_newer_kind_is_named():
    with pytest.raises(ValueError, match="'tracks'; known are hits"):
        unpack({"kind": "tracks"})


def test_probabilities_are_not_taken_for_hits():
    with pytest.raises(ValueError, match="bool"):
        Hits(np.array([0.3, 0.9]))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_refused(bad):
    with pytest.raises(ValueError, match="1 of 3 values"):
        Values(np.array([1.0, bad, 2.0]))


@pytest.mark.parametrize("kind", [Hits, Values])
def test_weights_say_how_often_an_image_counts(kind):
    rng = np.random.default_rng(0)
    numbers = rng.random(30) < 0.5 if kind is Hits else rng.normal(size=30)
    weights = rng.integers(0, 3, size=(4, 30))
    expected = [np.repeat(numbers, row).mean() for row in weights]
    np.testing.assert_allclose(kind(numbers).value(weights), expected, rtol=1e-12)
    assert kind(numbers).score == pytest.approx(numbers.mean())
    assert np.isnan(kind(numbers).value(np.zeros((1, 30)))).all()


def test_weights_of_other_images_are_refused():
    with pytest.raises(ValueError, match=r"\[K, 3\]"):
        Hits(np.ones(3, bool)).value(np.ones((2, 4)))
