"""Files in parts are one; a conversion is the same from every format and reads what it needs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mimbench.errors import UserError
from mimbench.weights import foreign
from mimbench.weights.convert import convert

from .proofs.mae import whole_images
from .test_foreign import assert_same, state_of, weights


def in_parts(folder: Path, form: str = "safetensors") -> tuple[Path, dict[str, torch.Tensor]]:
    state = {name: tensor.contiguous() for name, tensor in weights().items()}
    listed = {name: f"model-{number % 2}.{form}" for number, name in enumerate(state)}
    for shard in set(listed.values()):
        part = {name: tensor for name, tensor in state.items() if listed[name] == shard}
        save_file(part, folder / shard) if form == "safetensors" else torch.save(part, folder / shard)
    index = folder / f"model.{form}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": listed}))
    return index, state


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_file_in_parts_is_one(form: str, tmp_path: Path) -> None:
    index, expected = in_parts(tmp_path, form)
    assert_same(state_of(index), expected)


def test_the_hubs_cache_of_links_is_read(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    index, expected = in_parts(blobs)
    for number, path in enumerate(sorted(blobs.iterdir())):
        (snapshot / path.name).symlink_to(path.rename(blobs / f"{number:064x}"))
    assert_same(state_of(snapshot / index.name), expected)


@pytest.mark.parametrize(
    "shard",
    ["../w.safetensors", "{}/w.safetensors", "a/../../w.safetensors", "..\\w.safetensors", "link", ".."],
)
def test_an_index_does_not_lead_out_of_its_folder(shard: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"w": torch.ones(1)}, tmp_path / "w.safetensors")
    (folder / "link").symlink_to(tmp_path / "w.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": shard.format(tmp_path)}}))
    with pytest.raises(UserError, match="does not lie in its folder"):
        foreign.read(index)


def test_an_index_that_its_files_belie_is_refused(tmp_path: Path) -> None:
    index, _ = in_parts(tmp_path)
    content = json.loads(index.read_text())
    listed = content["weight_map"]
    (other,) = set(listed.values()) - {listed["b"]}
    for change in ({"more": other}, {"b": other}):
        index.write_text(json.dumps({"weight_map": listed | change}))
        with pytest.raises(UserError, match=f"do not agree on where {next(iter(change))}"):
            foreign.read(index)
    index.write_text(json.dumps({"weight_map": {name: s for name, s in listed.items() if name != "b"}}))
    with pytest.raises(UserError, match="do not agree on where b"):
        foreign.read(index)
    for text in ("", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 3}}', "[" * 100_000):
        index.write_text(text)
        with pytest.raises(UserError, match="is not the index of a file in parts"):
            foreign.read(index)
    index.write_text(json.dumps({"weight_map": {"w": index.name}}))
    with pytest.raises(UserError, match="does not lie in its folder"):
        foreign.read(index)


def test_another_part_is_another_file(tmp_path: Path) -> None:
    index, _ = in_parts(tmp_path)
    before = foreign.sha256(index)
    assert before == foreign.sha256(index)
    part = tmp_path / "model-1.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(part).items()}, part)
    assert foreign.sha256(index) != before


# Conversion ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["legacy", "safetensors", "in parts"])
def test_a_conversion_is_the_same_from_every_format(form: str, tmp_path: Path) -> None:
    proof = whole_images()
    state = {name: tensor.contiguous() for name, tensor in proof.content["model"].items()}
    torch.save(proof.content, tmp_path / "official.pth")
    expected = convert(tmp_path / "official.pth", proof.entry, tmp_path / "expected.safetensors")
    entry, source = proof.entry, tmp_path / "official.bin"
    if form == "legacy":
        torch.save(proof.content, source, _use_new_zipfile_serialization=False)
    else:
        entry = entry.model_copy(update={"container": ()})
        source = tmp_path / "official.safetensors"
        save_file(state, source)
        if form == "in parts":
            index = tmp_path / "official.safetensors.index.json"
            index.write_text(json.dumps({"weight_map": dict.fromkeys(state, source.name)}))
            source = index
    made = convert(source, entry, tmp_path / "made.safetensors")
    assert (set(made.used), made.dropped, made.fresh) == (
        set(expected.used),
        expected.dropped,
        expected.fresh,
    )
    ours, theirs = load_file(made.path), load_file(expected.path)
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_conversion_reads_no_tensor_to_know_its_shape(tmp_path: Path, monkeypatch) -> None:
    """Nor one it has no use for: a decoder, or an optimiser of twice the size."""
    from mimbench import tensor_files

    proof = whole_images()
    source = tmp_path / "official.safetensors"
    state = {name: tensor.contiguous() for name, tensor in proof.content["model"].items()}
    save_file({**state, "decoder_pred.weight": torch.ones(5)}, source)
    read: list[str] = []
    call = tensor_files._Reader.__call__
    monkeypatch.setattr(
        tensor_files._Reader, "__call__", lambda self, name: read.append(name) or call(self, name)
    )
    entry = proof.entry.model_copy(update={"container": ()})
    made = convert(source, entry, tmp_path / "encoder.safetensors")
    assert sorted(read) == sorted(made.used)
    read.clear()
    with pytest.raises(UserError, match=r"has nothing for the encoder's blocks\.3"):
        convert(source, entry.model_copy(update={"options": {**entry.options, "depth": 4}}), tmp_path / "x")
    assert read == []
