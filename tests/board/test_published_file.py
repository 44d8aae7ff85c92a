"""The shipped published figures: facts that can be traced, in this project's vocabulary."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import defaultdict
from pathlib import Path

import pytest

import mimbench
from method_zoo.backbones import NAMES
from mimbench import registry
from mimbench.errors import UserError
from mimbench.published import CONFIDENCE, Figure, find, frame, load
from mimbench.published.alike import LETTERS
from mimbench.published.recipes import FIELDS, RECIPES

ROOT = Path(__file__).parents[2]
FIGURES = load()
# What a protocol measures beside the metric that it ranks by.
FURTHER = {"coco": {"mask_ap"}, "fewshot": {"top1_1pct"}}
ROW = {
    "method": "MAE",
    "key": "mae",
    "backbone": "ViT-B/16",
    "evaluated_on": "ImageNet-1K",
    "protocol": "linear probe",
    "protocol_key": "linprobe",
    "metric": "top1",
    "value": "68.0",
    "source": "a paper",
}


def write_file(folder: Path, **changes: str) -> Path:
    row = {**ROW, **changes}
    path = folder / "figures.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerow(row)
    return path


def test_no_figure_is_there_twice():
    assert len(set(FIGURES)) == len(FIGURES) > 800


def test_every_key_is_a_method_or_declared_as_not_implemented():
    methods = registry.methods()
    assert {f.key: f.implemented for f in FIGURES} == {f.key: f.key in methods for f in FIGURES}


def test_a_method_has_one_name_and_the_one_of_its_card():
    names = {key: cls.card.name for key, cls in registry.methods().items()}
    seen = defaultdict(set)
    for figure in FIGURES:
        seen[figure.key].add(figure.method)
    assert {key: own for key, own in seen.items() if len(own) > 1} == {}
    assert {key: own for key, own in seen.items() if key in names and own != {names[key]}} == {}


def test_every_protocol_and_recipe_exists_and_measures_that_metric():
    protocols = registry.protocols()
    for figure in FIGURES:
        key, _, recipe = figure.protocol_key.partition(":")
        if not key:
            continue
        assert figure.metric in {protocols[key].metric, *FURTHER.get(key, ())}, figure
        assert not recipe or recipe in protocols[key].presets, figure


def test_a_recipe_that_chooses_on_test_says_so():
    """Where a source's choice is known, it is the one that the recipe makes."""
    compared = 0
    for figure in FIGURES:
        key, _, recipe = figure.protocol_key.partition(":")
        if recipe and figure.chosen_on:
            fields = registry.protocols()[key].presets[recipe].fields
            assert figure.chosen_on == fields.get("choose_on", "validation"), figure
            compared += 1
    assert compared > 50


def test_backbone_keys_are_backbones_and_mean_the_words_beside_them():
    for figure in FIGURES:
        plain = re.fullmatch(r"ViT-([TSBL])/(\d+)", figure.backbone)
        if figure.backbone_key:
            assert re.fullmatch(NAMES, figure.backbone_key), figure
            assert plain is not None
            assert figure.backbone_key == f"vit_{LETTERS[plain[1]]}_patch{plain[2]}"
        elif plain:
            assert figure.key in ("eva02", "hiera"), figure  # other blocks under a ViT's name


def test_contradictions_are_kept_and_marked():
    groups = defaultdict(list)
    for f in FIGURES:
        setting = (f.backbone, f.image_size, f.pretrain_data, f.epochs, f.evaluated_on)
        groups[(f.key, f.variant, f.protocol, f.metric, setting)].append(f)
    contradicting = {f for own in groups.values() if len({f.value for f in own}) > 1 for f in own}
    assert {f for f in FIGURES if f.disagrees} == contradicting
    known = {(f.value, f.measured_by) for f in find(FIGURES, methods=["mae"], metric="top1") if f.disagrees}
    assert {(68.0, "authors"), (67.8, "authors"), (67.1, "mmpretrain")} <= known


def test_sources_can_be_followed_by_an_outsider():
    text = "\n".join(json.dumps(f.model_dump()) for f in FIGURES)
    assert not re.search(r"/(work|tmp|home|root)/|text read|memory|\.md#|dump", text)
    traced = [f for f in FIGURES if f.url]
    assert len(traced) > 0.95 * len(FIGURES)
    for figure in traced:
        place = figure.url.removeprefix("https://github.com/").removeprefix("https://arxiv.org/abs/")
        assert place.split("/issues")[0] in figure.source, figure


def test_every_confidence_is_explained_and_what_is_unchecked_says_so():
    assert {f.confidence for f in FIGURES} == set(CONFIDENCE)
    assert all("not checked" in f.note for f in FIGURES if f.confidence == "low")
    assert all(f.confidence != "high" for f in FIGURES if "not checked" in f.note)


def test_recipes_are_those_of_the_protocols():
    used = {f.protocol_key for f in FIGURES if ":" in f.protocol_key}
    assert set(RECIPES) == used
    for name in used:
        key, _, recipe = name.partition(":")
        fields = registry.protocols()[key].presets[recipe].fields
        expected = {k: json.loads(json.dumps(v)) for k, v in fields.items() if k in FIELDS}
        assert RECIPES[name] == expected, name


def test_the_file_lies_beside_the_measured_results_too():
    """In a checkout of Git for Windows without symbolic links the path is the content."""
    beside = ROOT / "results" / "published.csv"
    real = ROOT / "mimbench" / "published" / "published.csv"
    content = beside.read_text(encoding="utf-8")
    assert content == real.read_text(encoding="utf-8") or content == "../mimbench/published/published.csv"
    assert load(real) == FIGURES


def test_known_figures_come_back_as_published():
    """He et al. 2022, table 3 and figure 8: ViT-B/16 and ViT-L/16 after 1600 epochs."""
    own = find(FIGURES, methods=["mae"], protocol="linprobe", metric="top1")
    paper = {f.backbone_key: f.value for f in own if f.source.startswith("MAE paper") and f.epochs == 1600}
    assert paper["vit_base_patch16"] == 68.0
    assert paper["vit_large_patch16"] == 75.8


def test_lookups_know_recipes_and_refuse_typos():
    probes = find(FIGURES, protocol="linprobe")
    assert {"linprobe", "linprobe:mae"} <= {f.protocol_key for f in probes}
    assert {f.protocol_key for f in find(FIGURES, protocol="linprobe:mae")} == {"linprobe:mae"}
    assert {f.key for f in find(FIGURES, methods=["mae", "beit"])} == {"mae", "beit"}
    with pytest.raises(LookupError, match="did you mean linprobe"):
        find(FIGURES, protocol="linprob")
    with pytest.raises(LookupError, match="mae"):
        find(FIGURES, methods=["maee"])
    with pytest.raises(LookupError, match="metric"):
        find(FIGURES, metric="top-1")


def test_the_frame_is_the_file():
    table = frame(FIGURES)
    assert list(table.columns) == list(Figure.model_fields)
    assert table["value"].tolist() == [f.value for f in FIGURES]
    some = mimbench.published_figures("mae, beit", protocol="linprobe")
    assert set(some["key"]) == {"mae", "beit"}
    assert some["protocol_key"].str.startswith("linprobe").all()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"value": "168"}, "value"),
        ({"value": "nan"}, "value"),
        ({"value": ""}, "value"),
        ({"source": ""}, "source"),
        ({"metric": ""}, "metric"),
        ({"confidence": "sure"}, "confidence"),
        ({"url": "javascript:alert(1)"}, "url"),
        ({"protocol_key": "linprobe: mae"}, "protocol_key"),
        ({"epochs": "-3"}, "epochs"),
        ({"backbon": "ViT-B/16"}, "backbon"),
        ({"disagrees": "perhaps"}, "disagrees"),
    ],
)
def test_a_broken_row_of_a_users_file_is_named(tmp_path, changes, named):
    with pytest.raises(UserError, match=rf"line 2 of .*figures\.csv: {named}"):
        load(write_file(tmp_path, **changes))


def test_a_users_own_figures_are_read(tmp_path):
    (figure,) = load(write_file(tmp_path, epochs="800", note='<script>, "quoted", |'))
    assert (figure.value, figure.epochs, figure.note) == (68.0, 800, '<script>, "quoted", |')
    with pytest.raises(UserError, match="check the path"):
        load(tmp_path / "none.csv")
    (tmp_path / "latin.csv").write_bytes(b"method\n\xe9\n")
    with pytest.raises(UserError, match="UTF-8"):
        load(tmp_path / "latin.csv")


def test_what_is_printed_as_csv_is_read_again(tmp_path):
    from mimbench.published.tell import told

    printed = told(FIGURES, "csv")
    assert isinstance(printed, str)
    path = tmp_path / "own.csv"
    path.write_text(printed, encoding="utf-8", newline="")
    assert load(path) == FIGURES
    assert len(list(csv.reader(io.StringIO(printed)))) == len(FIGURES) + 1
