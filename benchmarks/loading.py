"""How much memory it takes to load and to convert an encoder, and how long. Prints ratios to the file's size.

    python benchmarks/loading.py                    # ViT-L/16 at 224 of random numbers: a file of 1.2 GB
    python benchmarks/loading.py --depth 4          # as wide, with 4 blocks

Each of these happens in a process of its own, which has built a small module before:

- load: ``checkpoint.load_encoder`` of an ``encoder.safetensors``;
- plain: the same module built, then filled with safetensors' ``load_file`` and ``load_state_dict``;
- convert: a PyTorch file in MAE's layout, and the same as safetensors, to an ``encoder.safetensors``.

Memory is what comes on top of what the process had: ``anonymous`` is its own (sampled every 2 ms),
``resident`` counts the pages of mapped files as well, which the system takes back when it needs them (the
kernel's own mark). The target: load at most 1.3 x the file, of either. Reads ``/proc``, so Linux alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from mimbench import checkpoint, registry
from mimbench.encoder import Encoder
from mimbench.weights.convert import convert
from mimbench.weights.entries import find_entry
from mimbench.weights.entry import Entry

MEAN = STD = (0.5, 0.5, 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--depth", type=int, default=24, help="blocks; ViT-L has 24")
    parser.add_argument("--rounds", type=int, default=3, help="times that each is done; medians are shown")
    parser.add_argument("--folder", type=Path, help="of the files; default: a temporary one")
    parser.add_argument("--only", choices=WORKS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measured(WORKS[options.only], options.folder, entry(options.depth))))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        make(folder, entry(options.depth))
        figures: dict[str, Any] = {"file (MB)": round((folder / "encoder.safetensors").stat().st_size / 1e6)}
        for work in WORKS:
            figures[work] = repeated(work, folder, options)
        print(json.dumps(figures, indent=1))


def entry(depth: int) -> Entry:
    """MAE's ViT-L with ``depth`` blocks; its positions count as trained, as the file's are drawn."""
    released = find_entry("mae@vit_large")
    options = {**released.options, "depth": depth, "positions": "learned"}
    return released.model_copy(update={"options": options})


def make(folder: Path, released: Entry) -> None:
    """The encoder's file and the official ones, of random numbers."""
    config = registry.find_origin(released.origin).config(released)
    backbone = registry.build_backbone(**config)
    state = backbone.state_dict()
    torch.save({"model": state}, folder / "official.pth")
    save_file(state, folder / "official.safetensors")
    metadata = {"backbone_config": backbone.config, "mean": MEAN, "std": STD, "method": "mae"}
    checkpoint.save_weights(folder / "encoder.safetensors", backbone, metadata)


def load(folder: Path, released: Entry) -> Any:
    return checkpoint.load_encoder(folder / "encoder.safetensors")


def plain(folder: Path, released: Entry) -> Any:
    config = checkpoint.read_metadata(folder / "encoder.safetensors")["backbone_config"]
    backbone = registry.build_backbone(**config)
    backbone.load_state_dict(load_file(folder / "encoder.safetensors"))
    return Encoder(backbone, MEAN, STD)


def convert_torch(folder: Path, released: Entry) -> Any:
    return convert(folder / "official.pth", released, folder / "converted.safetensors")


def convert_safetensors(folder: Path, released: Entry) -> Any:
    bare = released.model_copy(update={"container": ()})
    return convert(folder / "official.safetensors", bare, folder / "converted.safetensors")


WORKS: dict[str, Callable[[Path, Entry], Any]] = {
    "load": load,
    "plain": plain,
    "convert, PyTorch": convert_torch,
    "convert, safetensors": convert_safetensors,
}


def repeated(work: str, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Medians over processes."""
    where = ["--folder", str(folder), "--depth", str(options.depth)]
    command = [sys.executable, __file__, "--only", work, *where]
    rounds = [
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for _ in range(options.rounds)
    ]
    return {name: round(statistics.median(one[name] for one in rounds), 3) for name in rounds[0]}


def measured(work: Callable[[Path, Entry], Any], folder: Path, released: Entry) -> dict[str, float]:
    """Peaks of memory in sizes of the encoder's file, and seconds."""
    size = (folder / "encoder.safetensors").stat().st_size
    registry.build_backbone("vit_micro_patch16", 32)  # what is imported and set up once
    Path("/proc/self/clear_refs").write_text("5")  # the kernel's mark of the peak begins anew
    before, own, over = memory(), [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.002):
            own.append(memory()["RssAnon"])

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    made = work(folder, released)
    seconds = time.perf_counter() - start
    over.set()
    watcher.join()
    del made
    return {
        "anonymous / file": (max(own) - before["RssAnon"]) / size,
        "resident / file": (memory()["VmHWM"] - before["VmRSS"]) / size,
        "seconds": seconds,
    }


def memory() -> dict[str, int]:
    """Bytes that this process has in memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "RssAnon", "VmHWM")}


if __name__ == "__main__":
    main()
