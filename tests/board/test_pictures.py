"""Pictures on the page are of its rows, are told in words, and never make it heavy."""

from __future__ import annotations

import base64
import io
import json
import re
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from mimbench.board import load, tables
from mimbench.report.page import html
from mimbench.report.sections import pictures
from mimbench.show.caption import caption_of, caption_path

from .synthetic import Board


def png(width: int = 60, height: int = 40, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def draw(board: Board, name: str, jobs: dict[str, str], content: bytes | None = None, **facts) -> Path:
    """A picture as ``mimbench show`` leaves it."""
    content = png() if content is None else content
    path = board.folder / "pictures" / f"{name}.png"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    given = {
        "kind": "masked",
        "title": f"{name}: masked input",
        "headings": ("image", "what the\nencoder is given"),
        "lines": 6,
        "note": "75% of the patches are hidden.",
        "jobs": jobs,
        "data": "digits",
        "fingerprint": "ab" * 32,
        "seed": 0,
        **facts,
    }
    caption_path(path).write_text(caption_of(content, **given).model_dump_json(), encoding="utf-8")
    return path


@pytest.fixture
def job(board) -> str:
    trained = board.pretrain("mae")
    board.evaluate("mae", needs={trained.id: "1" * 64})
    return trained.id


def page(board: Board, out: Path | None = None) -> str:
    return html(tables(load(board.folder)), board.folder, out or board.folder)


def images(markup: str) -> list[Image.Image]:
    return [
        Image.open(io.BytesIO(base64.b64decode(data)))
        for data in re.findall(r'<img src="data:image/webp;base64,([^"]*)"', markup)
    ]


def test_a_picture_is_embedded_with_words_for_who_does_not_see_it(board, job):
    draw(board, "mae", {job: "mae"}, legend=("cat", "dog"))
    markup = page(board)
    (image,) = images(markup)
    assert image.size == (60, 40)
    (alt,) = re.findall(r'alt="([^"]*)"', markup)
    assert alt == "mae: masked input: 6 lines of pictures; columns: image, what the encoder is given"
    caption = re.sub(r"<[^>]*>", "", re.findall(r"<figcaption>(<b>mae.*?)</figcaption>", markup)[0])
    for words in ("images of digits", "row mae of seed 0", "75% of the patches are hidden.", "cat, dog"):
        assert words in caption
    assert 'width="60" height="40"' in markup  # the page does not jump
    assert 'href="pictures/mae.png"' in markup


def test_links_to_pictures_lead_from_another_folder(board, job, tmp_path):
    path = draw(board, "mae", {job: "mae"})
    out = tmp_path / "else%where" / "deep"
    (target,) = re.findall(r'href="([^"]*mae\.png)"', page(board, out))
    out.mkdir(parents=True)
    assert (out / unquote(target)).resolve() == path.resolve()


def test_pictures_of_rows_elsewhere_stay_out(board, job):
    """A picture of last week's weights beside this week's numbers would show what was not measured."""
    draw(board, "gone", {"0" * 16: "mae"})
    draw(board, "partly", {job: "mae", "0" * 16: "hpm"})
    draw(board, "nobody", {})
    draw(board, "replaced", {job: "mae"}).write_bytes(png(seed=1))  # its caption is of another picture
    caption_path(draw(board, "damaged", {job: "mae"})).write_text('{"kind": 3', encoding="utf-8")
    caption_path(draw(board, "bare", {job: "mae"})).unlink()
    assert images(page(board)) == []
    assert 'id="pictures"' not in page(board)
    draw(board, "mae", {job: "mae"})
    assert len(images(page(board))) == 1


def test_all_pictures_together_stay_below_the_limit_and_the_rest_is_linked(board, job, monkeypatch):
    one = len(pictures._encoded(png(300, 300)).content)
    monkeypatch.setattr(pictures, "MOST_BYTES", int(2.5 * one))
    for seed in range(4):
        draw(board, f"p{seed}", {job: "mae"}, png(300, 300, seed))
    markup = page(board)
    assert len(images(markup)) == 2
    (told,) = re.findall(r"The page holds pictures of up to.*?</p>", markup)
    assert re.findall(r'href="([^"]*)"', told) == ["pictures/p2.png", "pictures/p3.png"]


def test_wide_pictures_are_scaled_down_in_proportion(board, job):
    draw(board, "wide", {job: "mae"}, png(4400, 80))
    (image,) = images(page(board))
    assert image.size == (1100, 20)


@pytest.mark.parametrize(
    "content", [b"no picture", png()[:200], b"\x89PNG\r\n\x1a\n" + bytes(40)], ids=["text", "cut", "empty"]
)
def test_a_file_that_is_no_picture_is_told_and_stops_nothing(board, job, content):
    draw(board, "odd", {job: "mae"}, content)
    markup = page(board)
    assert images(markup) == []
    assert "could not be read" in markup
    assert 'href="pictures/odd.png"' in markup


@pytest.mark.parametrize("side", [10_000, 15_000])
def test_a_picture_that_would_fill_the_memory_is_not_unpacked(board, job, side):
    """Pixels of one colour, hundreds of megabytes of them, fit into a few kilobytes of PNG."""
    buffer = io.BytesIO()
    Image.new("1", (side, side)).save(buffer, "PNG")
    assert len(buffer.getvalue()) < 100_000
    draw(board, "bomb", {job: "mae"}, buffer.getvalue())
    assert images(page(board)) == []


def test_kinds_stand_in_the_order_in_which_they_are_drawn(board, job):
    for kind in ("zebra", "cka", "masked", "attention"):
        draw(board, kind, {job: "mae"}, kind=kind)
    titles = re.findall(r"<figcaption><b>(\w+): masked input", page(board))
    assert titles == ["masked", "attention", "cka", "zebra"]


def test_captions_are_text(board, job):
    hostile = '"><img src=x onerror=alert(1)><script>'
    draw(
        board,
        "mae",
        {job: hostile},
        title=hostile,
        note=hostile,
        kind=hostile,
        headings=(hostile,),
        legend=(hostile,),
        data=hostile,
    )
    markup = page(board)
    assert hostile not in markup
    assert markup.count("<img") == 1
    assert unescape(markup).count(hostile) >= 7


def test_a_caption_survives_json(board, job):
    path = draw(board, "mae", {job: "mae"})
    kept = json.loads(caption_path(path).read_text(encoding="utf-8"))
    assert kept["jobs"] == {job: "mae"}
    assert kept["headings"] == ["image", "what the\nencoder is given"]
