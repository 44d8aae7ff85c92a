"""Settings: a typing mistake must never pass for a result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from mimbench import settings
from mimbench.errors import UserError
from mimbench.spec import Readout

if TYPE_CHECKING:  # as in method files: the settings must not need what only type checkers see
    from nowhere import Backbone


class Masked:
    def __init__(
        self,
        backbone: Backbone,
        *,
        mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75,
        depth: Annotated[int, Field(ge=1)] = 8,
        norm_pix: bool = True,
        loss: Literal["l1", "l2"] = "l2",
        scales: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(max_length=3)] = (1, 2),
        limit: int | None = None,
        num_classes: int = 0,
        tokenizer: Any = None,
    ):
        pass


class Child(Masked):
    pass


@dataclass(frozen=True)
class Probe:
    key: ClassVar[str] = "probe"
    epochs: Annotated[int, Field(ge=1)] = 50
    readouts: tuple[Readout, ...] = field(default_factory=lambda: (Readout(),))


def parse(**given):
    return settings.parse_settings("mae", Masked, given)


def test_all_settings_are_recorded_with_their_defaults():
    assert parse() == settings.defaults(Masked) == settings.defaults(Child)
    assert parse(mask_ratio=0.9) == {
        "mask_ratio": 0.9,
        "depth": 8,
        "norm_pix": True,
        "loss": "l2",
        "scales": [1.0, 2.0],
        "limit": None,
    }


def test_a_protocols_fields_come_back_as_what_it_declared():
    parsed = settings.parse_settings("probe", Probe, {"readouts": [{"token": "cls"}]})
    assert parsed["readouts"] == [{"layer": -1, "norm": "final", "token": "cls"}]
    assert Probe(**settings.arguments(Probe, parsed)) == Probe(readouts=(Readout(token="cls"),))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mask_ratio": 1.5}, "mae.mask_ratio=1.5: must be less than 1 (default 0.75)"),
        ({"mask_ratio": 0}, "mae.mask_ratio=0: must be greater than 0 (default 0.75)"),
        ({"mask_ratio": "most"}, "mae.mask_ratio=most: must be a valid number"),
        ({"mask_ratio": float("nan")}, "mae.mask_ratio=nan: must be"),
        ({"mask_ratio": True}, "mae.mask_ratio=true: must not be true or false (default 0.75)"),
        ({"mask_ratio": None}, "mae.mask_ratio=null: must be a valid number"),
        ({"depth": 2.5}, "mae.depth=2.5: must be a valid integer"),
        ({"loss": "l3"}, "mae.loss=l3: must be 'l1' or 'l2' (default l2)"),
        ({"scales": [1, "x"]}, "mae.scales=[1,x]: [1] must be a valid number"),
        ({"mask_rato": 0.5}, "no setting of mae is called 'mask_rato'; did you mean mask_ratio?"),
        ({"backbone": 1}, "no setting of mae is called 'backbone'"),
        ({"num_classes": 1}, "no setting of mae is called 'num_classes'"),
        ({"tokenizer": 1}, "no setting of mae is called 'tokenizer'"),
    ],
)
def test_a_wrong_setting_is_one_clear_sentence(given, message):
    with pytest.raises(UserError) as caught:
        parse(**given)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_setting_without_annotation_or_default_is_its_authors_error():
    class Untyped:
        def __init__(self, backbone, *, ratio=0.5):
            pass

    class Needy:
        def __init__(self, backbone, *, ratio: float):
            pass

    class Misspelt:
        def __init__(self, backbone, *, ratio: flaot = 0.5):  # noqa: F821
            pass

    for cls, says in ((Untyped, "no annotation"), (Needy, "no default"), (Misspelt, "flaot")):
        with pytest.raises(UserError, match=says):
            settings.defaults(cls)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("mae,beit", [("mae", {}), ("beit", {})]),
        (" mae , beit ,", [("mae", {}), ("beit", {})]),
        (
            "mae[mask_ratio=0.5],mae[mask_ratio=0.75,norm_pix=false]",
            [("mae", {"mask_ratio": 0.5}), ("mae", {"mask_ratio": 0.75, "norm_pix": False})],
        ),
        ("mae[scales=[1,2],loss=l1]", [("mae", {"scales": [1, 2], "loss": "l1"})]),
        ("mae[limit=null]", [("mae", {"limit": None})]),
        ("mae[]", [("mae", {})]),
        ("", []),
    ],
)
def test_commas_inside_brackets_belong_to_the_variant(text, wanted):
    assert settings.parse_methods(text) == wanted


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("mae[mask_ratio=0.5", "brackets do not match"),
        ("mae]mask_ratio[", "brackets do not match"),
        ("mae[mask_ratio]", "write NAME=VALUE"),
        ("mae[=3]", "write NAME=VALUE"),
        ("mae[depth=]", "write NAME=VALUE"),
        ("mae[depth=1]beit", "cannot read the method"),
        ("[depth=1]", "cannot read the method"),
        ("mae[depth=1,depth=2]", "twice"),
    ],
)
def test_a_malformed_variant_is_one_clear_sentence(text, says):
    with pytest.raises(UserError, match=says):
        settings.parse_methods(text)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "mask_ratio": st.floats(0.01, 0.99).map(lambda x: float(f"{x:.6g}")),
            "depth": st.integers(1, 99),
            "norm_pix": st.booleans(),
            "loss": st.sampled_from(["l1", "l2"]),
            "scales": st.lists(st.sampled_from([1.0, 0.5, 1e-5, 3e20]), max_size=3),
            "limit": st.none() | st.integers(0, 9),
        },
    )
)
def test_a_label_leads_back_to_its_settings(given_settings):
    parsed = parse(**given_settings)
    label = settings.label("mae", Masked, parsed)
    (wanted,) = settings.parse_methods(label)
    assert wanted.key == "mae"
    assert parse(**wanted.given) == parsed
    assert set(wanted.given) == {k for k, v in parsed.items() if v != settings.defaults(Masked)[k]}


def test_equal_settings_have_one_label():
    one = settings.label("mae", Masked, parse(norm_pix=False, mask_ratio=0.5, depth=8))
    other = settings.label("mae", Masked, parse(mask_ratio="0.50", norm_pix="false"))
    assert one == other == "mae[mask_ratio=0.5,norm_pix=false]"


def test_ranges_are_shown_to_people():
    shown = {name: (default, allowed) for name, default, allowed in settings.ranges(Masked)}
    assert shown["mask_ratio"] == ("0.75", "number > 0, < 1")
    assert shown["depth"] == ("8", "whole number ≥ 1")
    assert shown["norm_pix"] == ("true", "true | false")
    assert shown["loss"] == ("l2", "l1 | l2")
    assert shown["scales"] == ("[1,2]", "list of number > 0")
    assert shown["limit"] == ("null", "whole number | null")
