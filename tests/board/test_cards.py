"""The page tells what each method is from the records alone, and nothing it does not know."""

from __future__ import annotations

import json
import re
from html import unescape
from typing import Any

import pytest

from mimbench.board import load, tables
from mimbench.errors import UserError
from mimbench.registry import methods
from mimbench.report.cards import EXTERNAL, PARITY, MethodCard
from mimbench.report.page import html
from mimbench.spec import Parity

from .synthetic import Board

CARD: dict[str, Any] = {
    "key": "mae",
    "name": "MAE",
    "paper": "Masked Autoencoders Are Scalable Vision Learners",
    "authors": "He, Chen",
    "year": 2022,
    "arxiv": "2111.06377",
    "code": "https://example.org/mae",
    "scheme": "reconstruction",
    "masking": "random",
    "target": "low level: normalised pixels",
    "architecture": "ViT encoder on visible patches",
    "objective": "reconstruction (L2)",
    "classes": {
        "masking": "random",
        "target": "pixels + labels",
        "architecture": "plain transformer",
        "objective": "reconstruction",
    },
    "external": "none",
    "parity": "verified",
    "recipe": "the paper's table 8",
    "notes": "A note on it.",
}


def row(board: Board, variant: str, card: dict[str, Any] | None, accuracy: float = 0.5, **given: Any) -> None:
    trained = board.pretrain(variant, card=card, **given)
    board.evaluate(variant, accuracy, needs={trained.id: "1" * 64}, **given)


def page(board: Board) -> str:
    return html(tables(load(board.folder)), board.folder, board.folder)


def texts(markup: str) -> str:
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", markup)))


def card_of(board: Board, variant: str) -> str:
    """What the row's name leads to."""
    whole = page(board)
    (anchor,) = re.findall(rf'<th scope="row"><a href="#([\w-]+)">{re.escape(variant)}</a>', whole)
    (found,) = re.findall(rf'<div id="{anchor}" class="card">(.*?)</div>', whole, re.DOTALL)
    return found


def test_a_row_leads_to_all_that_its_record_knows_of_the_method(board):
    row(board, "mae", CARD, settings={"mask_ratio": 0.75}, recipe={"source": "one for all"})
    markup = card_of(board, "mae")
    told = texts(markup)
    for field in ("paper", "authors", "masking", "target", "architecture", "objective", "recipe", "notes"):
        assert CARD[field] in told, field
    assert "pixels + labels: low level: normalised pixels" in told
    for words in ("2022", "nothing but images", PARITY["verified"], "mask ratio 0.75", "one for all"):
        assert words in told, words
    assert re.findall(r'href="([^"]*)"', markup) == ["https://arxiv.org/abs/2111.06377", CARD["code"]]


def test_variants_of_a_method_share_its_card_and_an_older_version_keeps_its_own(board):
    row(board, "mae", CARD, 0.6, settings={"mask_ratio": 0.75})
    row(board, "mae[mask_ratio=0.9]", CARD, 0.5, settings={"mask_ratio": 0.9})
    row(board, "mae", {**CARD, "notes": "As it was before."}, 0.4, method_version=0)
    whole = page(board)
    anchors = re.findall(r'<th scope="row"><a href="#([\w-]+)">', whole)
    assert len(anchors) == 3
    assert anchors[0] == anchors[1] != anchors[2]
    assert len(re.findall(r'class="card"', whole)) == 2
    assert "mask ratio 0.9" in texts(whole)
    assert "As it was before." in texts(whole)


def test_without_cards_the_page_makes_none_up(board):
    """A card out of today's registry would describe code that an old record never ran."""
    row(board, "mae", None)
    whole = page(board)
    assert 'id="methods"' not in whole
    assert '<th scope="row">mae' in whole


def test_rows_without_a_card_are_counted_beside_those_with_one(board):
    row(board, "mae", CARD, 0.6)
    row(board, "hpm", None, 0.5)
    assert "Of 1 row the records keep no card." in texts(page(board))


def test_a_damaged_card_is_named_with_its_file(board):
    trained = board.pretrain("mae", card={**CARD, "year": "long ago"})
    with pytest.raises(UserError, match=rf"records/{trained.id}.json.*facts.card.year"):
        load(board.folder)


def test_only_web_addresses_become_links():
    odd = MethodCard(key="x", name="x", arxiv="2111.06377/../..", code="javascript:alert(1)")
    assert (odd.paper_link, odd.code_link) == ("", "")
    assert MethodCard(key="x", name="x", arxiv="2408.06687").paper_link == "https://arxiv.org/abs/2408.06687"


@pytest.mark.parametrize("key", sorted(methods()))
def test_every_card_of_the_zoo_survives_its_record(key):
    """What a record keeps of a card, through JSON, is what the page shows of it."""
    card = methods()[key].card
    kept = MethodCard.model_validate(json.loads(json.dumps(card.facts())))
    assert (kept.paper, kept.year, kept.scheme, kept.target) == (
        card.paper,
        card.year,
        card.scheme,
        card.target,
    )
    assert kept.recipe == (card.recipe.source if card.recipe else None)
    assert bool(kept.paper_link) == bool(card.arxiv)
    assert kept.parity in PARITY
    assert kept.external in EXTERNAL
    assert kept.filed("target") == tuple(card.classes.target.split(" + "))
    assert len(json.dumps(card.facts())) < 6000  # beside every record, so no larger than it needs be


def test_every_grade_of_parity_has_words():
    assert set(PARITY) == set(Parity.__args__)
