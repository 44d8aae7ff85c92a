"""Which protocols a run takes on which data: what is named must work, "all" takes what suits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from mimbench import registry
from mimbench.choice import choose_protocols
from mimbench.errors import UserError
from mimbench.protocol import Preset, Protocol
from mimbench.variants import Assignments


class Data:
    """As much of a data set as choosing looks at."""

    def __init__(self, spec: str, task: str, labelled: bool = True):
        self.spec = self.name = spec
        self.fingerprint = spec.ljust(64, "0")
        self.task, self.classes = task, ("a", "b") if labelled else None


PHOTOS, FLAT = Data("photos", "classification"), Data("flat", "classification", labelled=False)
SCENES, STREETS = Data("scenes", "segmentation"), Data("streets", "segmentation")
BOXES = Data("boxes", "detection")


@dataclass(frozen=True)
class Probe(Protocol):
    key, version, summary = "probe", 1, "of classes"
    presets: ClassVar = {"old": Preset({"rate": 0.5}, source="a paper")}

    rate: float = 1.0


@dataclass(frozen=True)
class Segmenter(Protocol):
    key, version, summary, task, metric = "segmenter", 1, "of pixels", "segmentation", "miou"


@dataclass(frozen=True)
class Aligned(Protocol):
    key, version, summary = "aligned", 1, "needs what is not there"

    def check(self, data) -> None:
        raise UserError("aligned needs weights of a text tower; give some")


@dataclass(frozen=True)
class Heavy(Protocol):
    key, version, summary, task = "heavy", 1, "needs a module", "detection"
    requires = (("json", "module_that_nobody_has"), "dense")


@pytest.fixture(autouse=True)
def _protocols(monkeypatch):
    found = {cls.key: cls for cls in (Aligned, Heavy, Probe, Segmenter)}
    monkeypatch.setattr(registry, "protocols", lambda: found)
    monkeypatch.setattr(registry, "find_protocol", found.__getitem__)


def choose(wanted, data, given=None):
    assigned = Assignments(given or {})
    chosen, left_out = choose_protocols(wanted, data, assigned)
    assigned.check_all_met()
    return [(choice.label, choice.data.spec) for choice in chosen], left_out


def test_each_protocol_meets_every_data_set_of_its_task():
    found, left_out = choose(["segmenter", "probe"], [PHOTOS, SCENES, STREETS])
    assert found == [("segmenter", "scenes"), ("segmenter", "streets"), ("probe", "photos")]
    assert left_out == ()


def test_data_that_does_not_suit_gives_way_to_data_that_does():
    assert choose(["probe"], [FLAT, PHOTOS])[0] == [("probe", "photos")]
    with pytest.raises(UserError, match="probe needs labels, flat has none"):
        choose(["probe"], [FLAT])


def test_a_protocol_without_data_says_how_to_give_some():
    with pytest.raises(UserError, match=r"evaluated on segmentation data.*--data photos,ade20k:PATH"):
        choose(["segmenter"], [PHOTOS])


def test_all_takes_what_suits_and_says_why_the_rest_is_left_out():
    found, left_out = choose(["all"], [PHOTOS, SCENES, BOXES])
    assert found == [("probe", "photos"), ("segmenter", "scenes")]
    assert [sentence.split()[0] for sentence in left_out] == ["aligned", "heavy"]
    assert "text tower" in left_out[0]
    assert "needs module_that_nobody_has, not installed here; pip install 'mimbench[dense]'" in left_out[1]


def test_what_is_named_beside_all_must_work():
    with pytest.raises(UserError, match="text tower"):
        choose(["all", "aligned"], [PHOTOS])


def test_a_recipe_is_asked_for_by_its_name():
    assigned = Assignments({})
    (choice,), _ = choose_protocols(["probe:old"], [PHOTOS], assigned)
    assert (choice.label, choice.fields) == ("probe:old", {"rate": 0.5})
    assert choose(["all", "probe:old"], [PHOTOS])[0] == [("probe", "photos"), ("probe:old", "photos")]
    with pytest.raises(UserError, match=r"official recipe of probe.*odl.*old"):
        choose(["probe:odl"], [PHOTOS])
    with pytest.raises(UserError, match="segmenter has no official recipes"):
        choose(["segmenter:beit"], [SCENES])


def test_a_changed_recipe_does_not_pass_for_the_official_one():
    found, _ = choose(["probe:old", "probe"], [PHOTOS], {"probe:old.rate": 0.25})
    assert [label for label, _ in found] == ["probe:old[rate=0.25]", "probe"]


def test_evaluations_on_other_data_are_jobs_of_their_own(digits):
    from mimbench.plan import make_plan
    from mimbench.request import make_request

    class Other:
        task, name = "classification", "others"
        fingerprint = "1" * 64

        def __getattr__(self, name):
            return getattr(digits, name)

    request = make_request({"methods": "mae", "protocol": "probe", "baselines": False})
    alone, both = (make_plan(request, data, "fp32") for data in ([digits], [digits, Other()]))
    assert {job.id for job in alone} < {job.id for job in both}
    (added,) = (job for job in both if job.id not in {job.id for job in alone})
    assert added.content["data"]["name"] == "others"
    assert added.content["setting"] == both.setting.content()
    renamed = Other()
    renamed.name = "elsewhere"
    again = make_plan(request, [digits, renamed], "fp32")
    assert {job.id for job in again} == {job.id for job in both}
