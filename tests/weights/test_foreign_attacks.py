"""Files that attack: nothing of theirs runs, fills the memory or leaves their folder, and each is named.

Every attack is first shown to work on a reader that trusts it: a test that could not fail shows nothing.
"""

from __future__ import annotations

import builtins
import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mimbench.errors import UserError
from mimbench.weights import foreign, pickles

WHOLE = ((), ("model",))


class Calls:
    """Pickled, it has the reader call a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


class Wakes:
    """Runs when it is given its state."""

    marker: str

    def __setstate__(self, state: dict[str, str]) -> None:
        Path(state["marker"]).touch()


def wakes(marker: Path) -> Wakes:
    made = Wakes()
    made.marker = str(marker)
    return made


PAYLOADS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a shell command": (lambda marker: Calls(os.system, f"touch {marker}"), "posix.system"),
    "an expression": (lambda marker: Calls(builtins.eval, f"open({str(marker)!r}, 'w')"), "builtins.eval"),
    "a method by getattr": (lambda marker: Calls(Path.touch, marker), "builtins.getattr"),
    "a state": (wakes, "test_foreign_attacks.Wakes"),
    "an import": (lambda marker: Calls(__import__, "os"), "builtins.__import__"),
    "a file": (lambda marker: Calls(open, str(marker), "w"), "io.open"),
    "a class altered": (lambda marker: Calls(setattr, torch.Tensor, "x", 1), "builtins.setattr"),
}
PLACES: dict[str, Callable[[Any], Any]] = {
    "in place of the content": lambda payload: payload,
    "beside the state dict": lambda payload: {"model": {"w": torch.zeros(2)}, "args": payload},
    "within the state dict": lambda payload: {"model": {"w": torch.zeros(2), "v": [payload]}},
}


def write(content: Any, path: Path, form: str) -> Path:
    if form == "plain pickle":
        path.write_bytes(pickle.dumps(content, 4))
    elif form == "protocol 4":
        torch.save(content, path, pickle_protocol=4)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    return path


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        foreign.state_dict(foreign.read(path), WHOLE, path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("form", "place"),
    [*product(["zip", "legacy", "protocol 4"], PLACES), ("plain pickle", "in place of the content")],
)
@pytest.mark.parametrize("kind", PAYLOADS)
def test_code_in_a_file_does_not_run_and_is_named(kind: str, form: str, place: str, tmp_path: Path) -> None:
    make, named = PAYLOADS[kind]
    marker = tmp_path / "it_ran"
    path = write(PLACES[place](make(marker)), tmp_path / "weights.pth", form)
    message = refused(path)
    assert not marker.exists()
    assert "nothing of it was run" in message
    if kind != "a method by getattr":
        assert named in message
    else:  # newer protocols name the method itself
        assert named in message or "Path.touch" in message


@pytest.mark.parametrize(
    "kind", ["a shell command", "an expression", "a method by getattr", "a state", "a file"]
)
@pytest.mark.parametrize("form", ["zip", "legacy", "protocol 4", "plain pickle"])
def test_these_attacks_work_on_a_reader_that_trusts_them(kind: str, form: str, tmp_path: Path) -> None:
    marker = tmp_path / "it_ran"
    path = write(PAYLOADS[kind][0](marker), tmp_path / "weights.pth", form)
    if form == "plain pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert marker.exists()


def test_a_pickle_beside_the_table_of_contents_is_left_alone(tmp_path: Path) -> None:
    path, marker = write({"w": torch.ones(2)}, tmp_path / "weights.pth", "zip"), tmp_path / "it_ran"
    payload = pickle.dumps(Calls(os.system, f"touch {marker}"), 2)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("weights/extra.pkl", payload)
    state = foreign.state_dict(foreign.read(path), WHOLE, path)
    assert torch.equal(state["w"], torch.ones(2))
    assert not marker.exists()
    pickle.loads(payload)
    assert marker.exists()


def test_code_in_one_part_of_several_does_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "it_ran"
    write({"w": Calls(os.system, f"touch {marker}")}, tmp_path / "part-1.bin", "zip")
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text('{"weight_map": {"w": "part-1.bin"}}')
    with pytest.raises(UserError, match=r"part-1\.bin wants posix\.system"):
        foreign.read(index)
    assert not marker.exists()


# Pickles written by hand -----------------------------------------------------------------------------


def archive(path: Path, table: bytes, **options: Any) -> Path:
    """A PyTorch file with ``table`` as its table of contents."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as made:
        made.writestr("weights/data.pkl", table)
        made.writestr("weights/version", "3\n")
    path.write_bytes(buffer.getvalue())
    return path


def glob(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


NAMESPACE = glob("argparse", "Namespace")
BY_HAND = {
    "calls what it made": (NAMESPACE + b")R)R", "calls what argparse.Namespace gives"),
    "alters a class": (NAMESPACE + b"}X\x01\x00\x00\x00aK\x01sb", "alters argparse.Namespace"),
    "alters a function": (glob("torch._utils", "_rebuild_tensor_v2") + b"}b", "alters torch._utils"),
    "sets items of a list": (b"]K\x00K\x01s", "sets items of what is no dictionary"),
    "sets items of an object": (NAMESPACE + b")RK\x00K\x01s", "sets items of what is no dictionary"),
    "appends to a dictionary": (b"}K\x00a", "appends to what is no list"),
    "claims memory": (
        glob("torch.storage", "UntypedStorage") + b"\x8a\x05\x00\x00\x00\x00\x40\x85R",
        "calls torch.storage.UntypedStorage",
    ),
    "a key so deep that its hash overflows the stack": (b"}K\x00" + b"\x85" * 300_000 + b"K\x00s", "deep"),
    "lists so deep that walking them does": (b"]" * 5000 + b"a" * 4999, "deep"),
    "an extension": (b"\x82\x01", "pickled in another way"),
    "an instance of the old kind": (b"(ios\nsystem\n", "os.system"),
    "takes from an empty stack": (b"R", "makes no sense"),
    "takes what was never put": (b"h\x07", "makes no sense"),
    "breaks off": (b"}X\xff\xff\x00\x00abc", "makes no sense"),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_a_table_of_contents_that_does_what_none_does_is_refused(case: str, tmp_path: Path) -> None:
    body, said = BY_HAND[case]
    message = refused(archive(tmp_path / "weights.pth", b"\x80\x02" + body + b"."))
    assert said in message


def test_what_a_file_says_is_not_obeyed_by_a_terminal(tmp_path: Path) -> None:
    escape = "\x1b[2J\x1b]0;title\x07\r"
    named = archive(tmp_path / "a.pth", b"\x80\x02" + glob("os" + escape, "system" * 99) + b"(tR.")
    torch.save({f"epoch{escape}\n": 1}, tmp_path / "b.pth")
    with zipfile.ZipFile(tmp_path / "c.pth", "w") as made:
        made.writestr(f"notes{escape}", b"")
    for path in (named, tmp_path / "b.pth", tmp_path / "c.pth"):
        message = refused(path)
        assert message.isprintable()
        assert len(message) < 600


# Files that unpack to more than they are -------------------------------------------------------------


@pytest.mark.parametrize("what", ["data", "table"])
def test_a_bomb_is_refused_before_it_is_unpacked(what: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        table = b"\x80\x02" + b"N0" * (1 if what == "data" else 10_000_000) + b"}."
        made.writestr("weights/data.pkl", table)
        made.writestr("weights/data/0", bytes(1 if what == "table" else 20_000_000))
    assert path.stat().st_size < 100_000
    assert "nothing was unpacked" in refused(path)


def test_compressed_bytes_are_not_taken_for_numbers(tmp_path: Path) -> None:
    """They lie where tensors are mapped from. Here compressing gained nothing, so sizes say nothing."""
    path, draw = tmp_path / "weights.pth", torch.Generator().manual_seed(0)
    write({"w": torch.randint(0, 256, (64,), generator=draw).byte()}, path, "zip")
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            kind = zipfile.ZIP_DEFLATED if name.endswith("data/0") else zipfile.ZIP_STORED
            archive.writestr(name, content, kind)
    assert "something that compresses" in refused(path)


def test_entries_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("weights/data.pkl", b"\x80\x02}.")
        made.writestr("weights/data/0", bytes(100_000))
        (kernel,) = (entry for entry in made.filelist if entry.filename.endswith("/0"))
        for number in range(1, 1000):  # all the same bytes, as in Fifield's bomb
            again = zipfile.ZipInfo(f"weights/data/{number}")
            again.file_size, again.compress_size = kernel.file_size, kernel.compress_size
            again.CRC, again.header_offset = kernel.CRC, kernel.header_offset
            made.filelist.append(again)
    assert path.stat().st_size < 250_000
    assert "nothing was unpacked" in refused(path)


def test_a_table_of_contents_of_absurd_size_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(foreign, "MOST_PICKLE", 1000)
    path = write({str(i): i for i in range(1000)}, tmp_path / "weights.pth", "zip")
    assert "no file of weights needs" in refused(path)


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_a_tensor_that_repeats_its_bytes_does_not_fill_the_memory(form: str, tmp_path: Path) -> None:
    path = write({"model": {"w": torch.zeros(1).expand(10**12)}}, tmp_path / "weights.pth", form)
    assert path.stat().st_size < 10_000
    assert "'w'" in refused(path)
    assert "4,000,000,000,000 bytes" in refused(path)


def test_a_header_that_announces_more_than_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"w": torch.zeros(4)}, path)
    whole = path.read_bytes()
    path.write_bytes(struct.pack("<Q", 1 << 60) + whole[8:])
    assert "safetensors" in refused(path)
    path.write_bytes(whole.replace(b'[4],"data_offsets":[0,16]', b'[9],"data_offsets":[0,36]'))
    assert "safetensors" in refused(path)


def test_looking_runs_nothing_and_stops_at_the_end(tmp_path: Path) -> None:
    file = io.BytesIO(pickle.dumps([1, "a"], 2) + b"rest")
    assert pickles.look(file).names == frozenset()
    assert file.read() == b"rest"
