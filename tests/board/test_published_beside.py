"""Published figures stand beside measured ones with the reasons why they differ, and never among them."""

from __future__ import annotations

import math
import re
from itertools import combinations

import numpy as np
import pytest
from scipy.stats import kendalltau

from mimbench import published
from mimbench.board import Table, load, summary, tables, write
from mimbench.published import Figure
from mimbench.published.agreement import kendall, orders
from mimbench.published.beside import Beside, beside, same_data
from mimbench.published.recipes import RECIPES
from mimbench.report.sheet import csv_text

from .synthetic import Board, only

# He et al. 2022: MAE, ViT-B/16, 1600 epochs, its own linear probe, 68.0.
AS_PUBLISHED = {
    "data": "imagenet:train",
    "image_size": 224,
    "backbone": "vit_base_patch16",
    "budget": {"unit": "epochs", "amount": 1600.0},
    "recipe": "paper",
    "batch_size": 4096,
}
PROBE = {"preset": "mae", "fields": {**RECIPES["linprobe:mae"], "choose_on": "test"}}
RECIPE = {"recipe": {"batch_size": 4096}}


def measured(
    board: Board,
    variant: str = "mae",
    accuracy: float = 0.6,
    *,
    seen: int | None = None,
    knn: float | None = None,
    **more,
):
    """A method pre-trained on ``seen`` images and evaluated; ``more`` goes into the evaluation's record."""
    curve = [{"progress": 1.0, "images": seen, "loss": 1.0}] if seen else []
    common = {k: more[k] for k in ("role", "external", "sources", "method_version") if k in more}
    trained = board.pretrain(variant, curve=curve, **{**RECIPE, **common})
    needs = {trained.id: "ab" * 32}
    if knn is not None:
        board.evaluate(variant, knn, protocol="knn", needs=needs, **common)
    return board.evaluate(variant, accuracy, needs=needs, **more)


def nearest(table: Table, place: int = 0, figures: tuple[Figure, ...] | None = None) -> Beside:
    """Of the table's only row."""
    (found,) = beside(table, place, published.load() if figures is None else figures)
    return found


def figure(**changes) -> Figure:
    facts = {
        "method": "MAE",
        "key": "mae",
        "backbone": "ViT-B/16",
        "backbone_key": "vit_base_patch16",
        "pretrain_data": "ImageNet-1K",
        "epochs": 800,
        "evaluated_on": "ImageNet-1K",
        "protocol": "linear probe",
        "protocol_key": "linprobe:mae",
        "metric": "top1",
        "value": 50.0,
        "measured_by": "authors",
        "source": "a paper",
        "confidence": "high",
    }
    return Figure.model_validate({**facts, **changes})


def test_where_nothing_differs_nothing_is_made_up(tmp_path):
    board = Board(tmp_path, **AS_PUBLISHED)
    measured(board, accuracy=0.65, seen=1600 * 1_281_167, **PROBE)
    found = nearest(only(board))
    assert (found.figure.value, found.figure.epochs) == (68.0, 1600)
    assert found.reasons == ()
    assert found.difference == pytest.approx(-3)
    assert found.low < 0.65 < found.high


PAPER = figure(epochs=1600, chosen_on="test")


@pytest.mark.parametrize(
    ("setting", "more", "said"),
    [
        ({"data": "digits"}, {}, "data: digits here, ImageNet-1K there"),
        ({"backbone": "vit_tiny_patch16"}, {}, "backbone: vit_tiny_patch16 here"),
        ({"backbone": "vit_base_patch8"}, {}, "backbone: vit_base_patch8 here, ViT-B/16 there"),
        ({"image_size": 96}, {}, "images: 96 pixels here, 224 as a rule there"),
        (
            {"budget": {"unit": "epochs", "amount": 100.0}},
            {"seen": 128_116_700},
            "100 epochs (128 million images seen) here",
        ),
        (
            {"budget": {"unit": "images", "amount": 1e6}},
            {"seen": 1_000_000},
            "1e+06 images (1 million images",
        ),
        ({}, {"seen": 1600 * 1000}, "1600 epochs (1.6 million images seen) here, 1600 epochs (2.05 billion)"),
        ({"recipe": "shared"}, {}, "pre-training recipe: one for all methods here, its own there"),
        ({"batch_size": 64}, {}, "batch of pre-training: 64 here, 4096 in the published recipe"),
        ({}, {"preset": ""}, "protocol: linprobe here, linear probe as in linprobe:mae there"),
        ({}, {"preset": "", "fields": {"batch_norm": [False]}}, "batch norm: no here, yes there"),
        (
            {},
            {"preset": "", "fields": {"batch_norm": [False, True]}},
            "batch norm: no or yes here, yes there",
        ),
        ({}, {"fields": {"epochs": 90}}, "chosen on validation images here, on the test images there"),
        ({}, {"variant": "mae[mask_ratio=0.9]"}, "variant: mask_ratio=0.9 here, as usual there"),
        (
            {},
            {"data": {"name": "imagefolder:cats", "fingerprint": "c" * 64}},
            "tested on imagefolder:cats here, on ImageNet-1K there",
        ),
    ],
)
def test_each_thing_that_differs_is_named(tmp_path, setting, more, said):
    board = Board(tmp_path, **{**AS_PUBLISHED, **setting})
    measured(board, **{**PROBE, **more})
    reasons = nearest(only(board), 0, (PAPER,)).reasons
    assert any(said in reason for reason in reasons), reasons


def test_what_a_method_learns_from_is_compared(tmp_path):
    board = Board(tmp_path, **AS_PUBLISHED)
    measured(board, "beit", external="tokenizer", sources="tokenizer vqvae")
    found = nearest(only(board))
    assert "learns from tokenizer vqvae here, DALL-E tokenizer there" in found.reasons


def test_two_figures_of_one_kind_of_protocol_are_no_same_protocol(tmp_path):
    """ "linprobe" without a recipe is many probes: an online one, one with batch norm, one without."""
    board = Board(tmp_path, **AS_PUBLISHED)
    measured(board)
    for words, said in (
        ("linear probe", "the source's own linear probe"),
        ("online linear probe, as it learns", "online linear probe, as it learns"),
    ):
        one = figure(protocol_key="linprobe", protocol=words)
        assert f"protocol: linprobe here, {said} there" in nearest(only(board), 0, (one,)).reasons


def test_the_nearest_setting_comes_first(tmp_path):
    board = Board(tmp_path, **{**AS_PUBLISHED, "budget": {"unit": "epochs", "amount": 300.0}})
    measured(board)
    far = [
        figure(epochs=400),
        figure(epochs=100),
        figure(epochs=1600),
        figure(epochs=300, variant="decoder depth 1"),
        figure(epochs=300, backbone="ViT-S/16", backbone_key="vit_small_patch16"),
        figure(epochs=300, backbone="ViT-H/14", backbone_key=""),
        figure(epochs=300, backbone="Swin-B", backbone_key=""),
        figure(epochs=300, evaluated_on="Imagenette"),
    ]
    found = nearest(only(board), 0, tuple(reversed(far)))
    assert [found.figure, *found.others] == far


def test_no_row_gets_the_figure_of_another_method_protocol_or_metric(board):
    for variant in ("mae", "beit", "nobodys"):
        measured(board, variant, knn=0.5)
    table = only(board)
    for place, column in enumerate(table.columns):
        for found in beside(table, place, published.load()):
            for one in (found.figure, *found.others):
                assert (one.key, one.metric) == (found.row.method, "top1")
                assert one.protocol_base == column.protocol
        assert {found.row.method for found in beside(table, place, published.load())} == {"mae", "beit"}


def test_floors_holes_and_older_versions_have_none(board):
    board.evaluate("random", 0.3, role="floor")
    board.evaluate("mae", 0.5, method_version=2)
    board.evaluate("mae", 0.4, method_version=1)
    board.pretrain("beit")
    table = only(board)
    assert [found.row.version for found in beside(table, 0, published.load())] == ["2"]


def test_further_metrics_are_compared_without_an_interval_that_is_not_theirs(board):
    numbers = {"box_ap": 0.3, "mask_ap": 0.25}
    board.evaluate(
        "mae",
        protocol="coco",
        metrics=numbers,
        outcomes={},
        data={"name": "coco:mine", "fingerprint": "d" * 64},
    )
    found = {one.metric: one for one in beside(only(board), 0, published.load())}
    assert set(found) == {"box_ap", "mask_ap"}
    assert found["mask_ap"].value == 0.25
    assert math.isnan(found["mask_ap"].low)
    assert found["mask_ap"].figure.metric == "mask_ap"


@pytest.mark.parametrize(
    ("name", "published_name", "same"),
    [
        ("imagenet:/data/ILSVRC2012", "ImageNet-1K", True),
        ("imagefolder:/data/imagenet", "ImageNet-1K", True),
        ("parquet:imagenette128", "Imagenette", True),
        ("parquet:imagenette128", "ImageNet-1K", False),
        ("imagefolder:/data/imagenet100", "ImageNet-1K", False),
        ("ade20k:msrc21", "ADE20K", False),
        ("ade20k:/data/ADEChallengeData2016", "ADE20K", True),
        ("coco:coco-mini", "COCO", False),
        ("digits", "ImageNet-1K", False),
        ("imagefolder:/data/places205/", "Places205", True),
    ],
)
def test_data_sets_are_told_apart_by_name(name, published_name, same):
    assert same_data(name, published_name) is same


def fill(board: Board) -> None:
    for place, variant in enumerate(("mae", "beit", "simmim", "ibot", "cae", "dmjd", "latentmim")):
        measured(board, variant, 0.3 + place / 20, knn=0.2 + place / 20)
    board.evaluate("random", 0.1, role="floor")


def ranked(page: str) -> str:
    """The leaderboard's own table."""
    return page[page.index("<table") : page.index("</table>")]


def test_published_figures_change_no_rank_mean_or_order(board, monkeypatch):
    """The table, the CSV and the page above the section are byte for byte what they are without them."""
    fill(board)
    (with_figures,) = write(board.folder, ("html",))
    page = with_figures.read_text(encoding="utf-8")
    sheet = csv_text(summary(tables(load(board.folder))))
    monkeypatch.setattr(published, "load", lambda: ())
    (without,) = write(board.folder, ("html",))
    bare = without.read_text(encoding="utf-8")
    assert 'class="published"' in page
    assert 'class="published"' not in bare
    assert ranked(page) == ranked(bare)
    assert "data-v" in ranked(page)
    assert csv_text(summary(tables(load(board.folder)))) == sheet


def test_a_reader_sees_both_numbers_the_difference_and_the_source(tmp_path):
    board = Board(tmp_path, **AS_PUBLISHED)
    measured(board, accuracy=0.65, seen=1600 * 1_281_167, **PROBE)
    (path,) = write(board.folder, ("html",))
    section = path.read_text(encoding="utf-8").partition('class="published"')[2]
    cells = re.findall(r'data-head="([^"]+)" class="number">([^<]+)<', section)
    assert [(head, shown.strip()) for head, shown in cells] == [
        ("Measured %", "65.0"),
        ("Published %", "68"),
        ("Difference", "−3.0"),
    ]
    assert "same setting as far as known" in section
    assert 'href="https://arxiv.org/abs/2111.06377"' in section
    assert "34 more published" in section
    assert "mimbench published --methods mae --protocol linprobe" in section  # only twelve are listed


def test_hostile_figures_stay_text(board, monkeypatch):
    measured(board)
    evil = '"><script>document.title="owned"</script>{{ 7 * 7 }}'
    wrong = figure(method=evil, variant=evil, source=evil, note=evil, pretrain_data=evil, protocol=evil)
    more = figure(source=evil, epochs=1, url='https://x.org/"onmouseover="alert(1)')
    monkeypatch.setattr(published, "load", lambda: (wrong, more))
    (path,) = write(board.folder, ("html",))
    text = path.read_text(encoding="utf-8")
    assert "<script>document" not in text
    assert "&lt;script&gt;document" in text
    assert "{{ 7 * 7 }}" in text
    assert '"onmouseover' not in text


def test_kendall_is_scipys_and_the_count_of_pairs():
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(2, 9))
    found = kendall(a, b)
    agree = sum(np.sign((a[i] - a[j]) * (b[i] - b[j])) for i, j in combinations(range(9), 2))
    assert found.tau == pytest.approx(agree / 36)
    assert found.p == pytest.approx(kendalltau(a, b).pvalue)


def test_the_interval_of_tau_is_fiellers():
    """n = 12, tau = 0.5151…: tanh(atanh(tau) ± 1.959964 · sqrt(0.437 / 8)), written out by hand."""
    a = list(range(12))
    b = [3, 0, 1, 5, 2, 4, 9, 11, 6, 7, 10, 8]
    found = kendall(a, b)
    half = 1.959964 * (0.437 / 8) ** 0.5
    assert found.low == pytest.approx(math.tanh(math.atanh(found.tau) - half), abs=1e-6)
    assert found.high == pytest.approx(math.tanh(math.atanh(found.tau) + half), abs=1e-6)


@pytest.mark.parametrize("rho", [0.0, 0.5])
def test_the_interval_of_tau_holds_the_true_one_as_often_as_it_says(rho):
    """Normal pairs: tau = 2/π · arcsin(rho). 95 % of 1000 draws, give or take."""
    rng = np.random.default_rng(5)
    true = 2 / math.pi * math.asin(rho)
    draws = rng.multivariate_normal([0, 0], [[1, rho], [rho, 1]], size=(1000, 15))
    held = [found.low <= true <= found.high for found in (kendall(*draw.T) for draw in draws)]
    assert 0.92 <= np.mean(held) <= 0.985


def test_five_methods_in_the_same_order_prove_little():
    found = kendall([1, 2, 3, 4, 5], [1, 2, 3, 4, 5])
    assert (found.tau, found.high) == (pytest.approx(1), pytest.approx(1))
    assert found.low < 0.5
    reverse = kendall([1, 2, 3, 4, 5], [5, 4, 3, 2, 1])
    assert reverse.high == pytest.approx(-found.low)
    with pytest.raises(ValueError, match="fewer than 5"):
        kendall([1, 2, 3, 4], [1, 2, 3, 4])
    assert math.isnan(kendall([1, 1, 1, 1, 1], [1, 2, 3, 4, 5]).tau)


def test_orders_are_of_one_backbone_on_the_same_data_and_need_five_methods(board):
    fill(board)
    table = only(board)
    place = next(i for i, column in enumerate(table.columns) if column.protocol == "linprobe")
    found = beside(table, place, published.load())
    compared = orders(found)
    assert compared is not None
    assert {(f.backbone, f.evaluated_on) for _, f in compared.pairs} == {("ViT-B/16", "ImageNet-1K")}
    assert all(f.key == b.row.method and not f.variant for b, f in compared.pairs)
    mae = next(f for b, f in compared.pairs if b.row.method == "mae")
    assert (mae.measured_by, mae.epochs) == ("authors", 1600)
    assert orders(found[:4]) is None


def test_the_page_says_in_words_how_far_the_orders_agree(board):
    fill(board)
    (path,) = write(board.folder, ("html",))
    section = path.read_text(encoding="utf-8").partition('class="published"')[2]
    table = only(board)
    place = next(i for i, column in enumerate(table.columns) if column.protocol == "linprobe")
    compared = orders(beside(table, place, published.load()))
    assert compared is not None
    assert f"{len(compared.pairs)} methods have a measured number and a published one of ViT-B/16" in section
    tau = f"{compared.agreement.tau:.2f}".replace("-", "−")
    assert f"Kendall's tau between the two orders is {tau} [" in section
    assert "The interval holds 0" in section
    drawn = section[section.index('<svg class="plot"') : section.index("</svg>")]
    assert drawn.count("<circle") == len(compared.pairs)
    assert "mae: 30.0 measured, 68 published" in drawn


def test_variants_of_one_method_do_not_pass_for_methods(board):
    for ratio in range(5):
        measured(board, f"mae[mask_ratio=0.{ratio}]", 0.3 + ratio / 20)
    assert orders(beside(only(board), 0, published.load())) is None
