"""Tables of released weights: apart from what is trained here, without a cost, beside their own figures."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from mimbench import board, published, records
from mimbench.errors import UserError
from mimbench.published.agreement import orders
from mimbench.published.beside import beside

from .synthetic import Board

RELEASED = {"budget": None, "recipe": None, "batch_size": None, "data": "imagenet", "image_size": 224}
COST = {"parameters_encoder": 86_000_000, "parameters_total": 86_000_000, "encoder_flops": 35e9}


def release(**known) -> dict:
    return {
        "data": "ImageNet-1K",
        "epochs": 1600,
        "licence": "CC-BY-NC-4.0",
        "file": "a.pth",
        "file_sha256": "ab" * 32,
        "origin": "mae",
        **known,
    }


def add(folder: Board, label: str, accuracy: float, protocol: str = "knn", **known) -> None:
    """A released row with what is known of it."""
    content = {"method": label.partition("@")[0], "role": "method", "recipe": None}
    facts = {"release": release(**known)}
    record = folder.pretrain(label, cost=COST, **content, released={"key": label})
    record = record.model_copy(update={"facts": facts})
    records.write(folder.folder, record)
    folder.evaluate(
        label,
        accuracy,
        protocol=protocol,
        cost=COST,
        facts=facts,
        needs={record.id: "cd" * 32},
        released={"key": label},
        **{k: v for k, v in content.items() if k != "recipe"},
    )


@pytest.fixture
def released(tmp_path) -> Board:
    return Board(tmp_path, backbone="vit_base_patch16", **RELEASED)


def tables(folder: Board, **layout) -> list[board.Table]:
    return board.tables(board.load(folder.folder), board.make_layout(**layout))


def test_rows_trained_here_and_released_ones_never_share_a_table(released):
    add(released, "mae@vit_base", 0.6)
    trained = released.with_setting(budget={"unit": "epochs", "amount": 1.0}, recipe="shared", batch_size=64)
    trained.pretrain("mae")
    trained.evaluate("mae", 0.5, protocol="knn")
    everything = ("backbone", "budget", "recipe", "batch_size", "image_size", "precision")
    for group in ((), everything):
        found = tables(released, group=group)
        assert sorted(len(table.rows) for table in found) == [1, 1]
        said = {dict(table.differs)["weights"] for table in found}
        assert said == {"released by others", "trained here"}
        for table in found:
            assert "as released" not in dict(table.differs).values()


def test_several_backbones_stand_in_one_table_where_they_are_asked_to(released):
    add(released, "mae@vit_base", 0.6)
    add(released.with_setting(backbone="vit_large_patch16"), "mae@vit_large", 0.7)
    assert len(tables(released)) == 2
    (table,) = tables(released, group="backbone")
    assert [row.group for row in table.rows] == ["vit_base_patch16", "vit_large_patch16"]
    assert [row.cells[0].rank for row in table.rows] == ["1", "1"]
    (found,) = {f.figure.backbone_key for f in beside(table, 0, published.load()) if "large" in f.row.variant}
    assert found == "vit_large_patch16"  # and not that of the table's first row


def test_an_unknown_cost_meets_no_level_and_stands_on_no_front(released, tmp_path):
    add(released, "mae@vit_base", 0.6)
    with pytest.raises(UserError, match="not known here"):
        tables(released, at="equal-flops")
    trained = released.with_setting(budget={"unit": "epochs", "amount": 1.0}, recipe="shared", batch_size=64)
    for name, accuracy in (("mae", 0.5), ("hpm", 0.55)):
        trained.pretrain(name)
        trained.evaluate(name, accuracy, protocol="knn")
    found = {table.setting.released: table for table in tables(released, at="equal-flops")}
    assert found[False].level is not None
    assert found[True].level is None
    assert found[True].unlevelled
    (row,) = found[True].rows
    assert row.cells[0].state == "value"
    assert all(math.isnan(row.cost[name]) for name in ("hours", "pflops", "tokens_m"))
    board.save(list(found.values()), tmp_path, ("html",), tmp_path / "page")
    page = (tmp_path / "page" / "leaderboard.html").read_text(encoding="utf-8")
    assert "level of cost that was asked for leaves this table as it is" in page
    assert "0 h" not in page


def test_what_saw_labels_is_marked_wherever_it_stands(released, tmp_path):
    add(released, "mae@vit_base", 0.6)
    add(released, "beit@vit_base-ft22k", 0.8, external="labels", labels=True, data="ImageNet-22K", epochs=90)
    (table,) = tables(released)
    marks = {row.variant: table.marks(row) for row in table.rows}
    assert marks["beit@vit_base-ft22k"][0] == "labels"
    assert "labels" not in marks["mae@vit_base"]
    board.save([table], tmp_path, tuple(board.FORMATS), tmp_path)
    for ending in ("html", "md", "tex", "csv"):
        text = (tmp_path / f"leaderboard.{ending}").read_text(encoding="utf-8")
        assert "labels" in text, ending
    assert 'data-uses="labels"' in (tmp_path / "leaderboard.html").read_text(encoding="utf-8")


def test_the_nearest_figure_is_of_the_same_data_and_epochs(released):
    add(released, "mae@vit_base", 0.68, protocol="linprobe")
    add(released, "dino@vit_base", 0.7, protocol="linprobe", epochs=400)
    (table,) = tables(released)
    found = {one.row.method: one for one in beside(table, 0, published.load())}
    mae = found["mae"].figure
    assert (mae.backbone_key, mae.epochs, mae.pretrain_data) == ("vit_base_patch16", 1600, "ImageNet-1K")
    for word in ("pre-trained on", "pre-training:", "recipe", "variant", "batch", "backbone"):
        assert not any(word in reason for reason in found["mae"].reasons), found["mae"].reasons
    short = Board(released.folder / "short", backbone="vit_base_patch16", **RELEASED)
    add(short, "mae@vit_base", 0.6, protocol="linprobe", epochs=37, data="Flowers")
    (table,) = tables(short)
    (one,) = (b for b in beside(table, 0, published.load()) if b.metric == "top1")
    assert any("pre-trained on Flowers here" in reason for reason in one.reasons)
    assert any("37 epochs here" in reason for reason in one.reasons)


def test_a_form_of_a_method_meets_the_figures_of_that_form(released):
    figures = [f for f in published.load() if f.protocol_base == "linprobe" and f.metric == "top1"]
    form = next(f for f in figures if f.variant and f.backbone_key == "vit_base_patch16")
    add(released, f"{form.key}@vit_base", 0.6, protocol="linprobe", figures={"variant": form.variant})
    (table,) = tables(released)
    one = beside(table, 0, published.load())[0]
    assert one.figure.variant == form.variant
    assert not any("variant" in reason for reason in one.reasons)


def test_the_published_order_is_held_against_that_of_released_weights(released):
    figures = [f for f in published.load() if f.protocol_base == "linprobe" and f.metric == "top1"]
    keys = {f.key for f in figures if f.backbone_key == "vit_base_patch16" and not f.variant and f.epochs}
    for place, key in enumerate(sorted(keys)[:6]):
        own = next(f for f in figures if f.key == key and f.backbone_key == "vit_base_patch16" and f.epochs)
        add(released, f"{key}@vit_base", 0.5 + 0.02 * place, protocol="linprobe", epochs=own.epochs)
    (table,) = tables(released)
    found = orders(beside(table, 0, published.load()))
    assert found is not None
    assert found.backbone == "ViT-B/16"
    assert len(found.pairs) >= 5


def test_cards_tell_what_else_the_method_has_released(released, tmp_path: Path):
    add(released, "mae@vit_base", 0.6, name="mae@vit_base")
    card = {"key": "mae", "name": "MAE", "parity": "verified"}
    (trained,) = (r for r in records.read_folder(released.folder) if r.kind == "pretrain")
    facts = {**trained.facts, "card": card}
    records.write(released.folder, trained.model_copy(update={"facts": facts}))
    board.save(tables(released), tmp_path, ("html",), tmp_path)
    page = (tmp_path / "leaderboard.html").read_text(encoding="utf-8")
    assert "Also released: " in page
    assert "mae@vit_large" in page
    assert "equals that of the official code" not in page  # nothing was trained by the code that was compared
