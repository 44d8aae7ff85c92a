"""What files of BEiT's relatives must not be taken for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mimbench.errors import UserError
from mimbench.weights.convert import convert
from mimbench.weights.entry import Entry

from .proof import small
from .proofs import beit, cae
from .proofs._beit import IMAGE_SIZE, SIZES


def _refused(content: Any, entry: Entry, folder: Path) -> str:
    torch.save(content, folder / "official.pth")
    with pytest.raises(UserError) as raised:
        convert(folder / "official.pth", entry, folder / "encoder.safetensors")
    return str(raised.value)


def _as(name: str) -> Entry:
    return small(name, image_size=IMAGE_SIZE, options=SIZES)


def test_a_fine_tuned_file_is_not_taken_for_the_label_free_one(tmp_path: Path) -> None:
    said = _refused(beit.fine_tuned().content, _as("beit@vit_base"), tmp_path)
    assert "has the unexpected" in said
    assert "relative_position_bias_table" in said


def test_a_label_free_file_is_not_taken_for_the_fine_tuned_one(tmp_path: Path) -> None:
    assert "rel_pos_bias" in _refused(beit.pre_trained().content, _as("beit@vit_base-ft22k"), tmp_path)


def test_a_class_head_is_not_left_out_of_a_file_said_to_be_label_free(tmp_path: Path) -> None:
    content = beit.pre_trained().content
    content["model"]["head.weight"] = torch.zeros(5, SIZES["embed_dim"])
    assert "head.weight" in _refused(content, _as("beit@vit_base"), tmp_path)


def test_relative_positions_that_are_looked_up_otherwise_are_refused(tmp_path: Path) -> None:
    """Such as from keys to queries: with the same shapes, another encoder."""
    content = beit.pre_trained().content
    name = "rel_pos_bias.relative_position_index"
    content["model"][name] = content["model"][name].T.contiguous()
    said = _refused(content, _as("beit@vit_base"), tmp_path)
    assert name in said
    assert "fixed table" in said


def test_a_table_of_another_image_size_is_refused(tmp_path: Path) -> None:
    entry = _as("beit@vit_base").model_copy(update={"image_size": 2 * IMAGE_SIZE})
    assert "relative_position_index" in _refused(beit.pre_trained().content, entry, tmp_path)


def test_fixed_positions_with_halves_swapped_are_refused(tmp_path: Path) -> None:
    """MAE's table has the column first, CAE's the row."""
    content = cae.whole().content
    table = content["model"]["encoder.pos_embed"]
    content["model"]["encoder.pos_embed"] = torch.cat(table.chunk(2, dim=2)[::-1], dim=2)
    said = _refused(content, _as("cae@vit_base"), tmp_path)
    assert "encoder.pos_embed" in said
    assert "fixed table" in said


def test_a_part_of_another_model_is_not_taken_for_the_encoder(tmp_path: Path) -> None:
    """SimMIM's file with the encoder's names as they are in BEiT's."""
    assert "unexpected" in _refused(beit.pre_trained().content, _as("simmim@vit_base"), tmp_path)
