"""What extracting frozen features costs beyond timm's forward of the same ViT. Prints a ratio.

    python benchmarks/features.py                                 # ViT-S/16 at 224, all cores
    python benchmarks/features.py --clock cpu --threads 1 --images 64 --batch 32

Both take turns on as many images in batches of one size, under the same precision:

- timm: ``VisionTransformer.forward_features`` on normalised float images at hand, nothing else;
- ours: ``FeatureStore.get`` from decoded uint8 images of 256/224 the size to files on disk: central crop,
  normalisation, forward, five readouts of two layers, checks, writing.

The target: ours / timm at most 1.1. Without prepared images decoding comes on top of it, see ``--workers``
of the command line.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import mimbench.torchvision_compat  # noqa: F401  isort: skip
from timm.models.vision_transformer import VisionTransformer

from mimbench import registry
from mimbench.encoder import Encoder
from mimbench.features import FeatureStore
from mimbench.precision import make_fabric, resolve_precision
from mimbench.spec import IMAGENET_MEAN, IMAGENET_STD, Readout

READOUTS = (
    Readout(token="cls"),
    Readout(token="mean"),
    Readout(token="mean", layer=-4),
    Readout(token="cls", norm="raw"),
    Readout(token="mean", norm="raw"),
)


class InMemory:
    """A split of decoded images, as a prepared store hands them out."""

    name, labels = "train", None

    def __init__(self, images: np.ndarray):
        self._images = images
        self.fingerprint = hashlib.sha256(images.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self._images)

    def image(self, index: int) -> np.ndarray:
        return self._images[index]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--backbone", default="vit_small_patch16")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5, help="timed turns of each, after one to warm up")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--threads", type=int, help="default: what torch chooses")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: for a busy machine, with --threads 1"
    )
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.images % options.batch:
        parser.error(f"--images {options.images} must be a multiple of --batch {options.batch}")
    precision = resolve_precision(options.precision, options.accelerator)
    fabric = make_fabric(precision, options.accelerator)
    size = options.image_size

    stored = round(size * 256 / 224)
    draw = np.random.default_rng(0)
    split = InMemory(draw.integers(256, size=(options.images, stored, stored, 3), dtype=np.uint8))
    backbone = registry.build_backbone(options.backbone, size)
    encoder = Encoder(backbone, IMAGENET_MEAN, IMAGENET_STD).to(fabric.device)

    config = backbone.config
    timms = VisionTransformer(
        img_size=size,
        patch_size=backbone.patch_size,
        embed_dim=config["embed_dim"],
        depth=config["depth"],
        num_heads=config["num_heads"],
        num_classes=0,
        global_pool="",
    )
    timms = timms.to(fabric.device).eval().requires_grad_(False)
    floats = torch.randn(options.images, 3, size, size, device=fabric.device)

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            FeatureStore(Path(folder), fabric).get(
                encoder, split, READOUTS, crop_pct=224 / 256, batch_size=options.batch
            )

    @torch.no_grad()
    def bare() -> None:
        for images in floats.split(options.batch):
            with fabric.autocast():
                timms.forward_features(images)
        if fabric.device.type == "cuda":
            torch.cuda.synchronize()

    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    turns: dict[str, Callable[[], None]] = {"timm": bare, "ours": ours}
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for turn in range(options.rounds + 1):
        for name, work in turns.items():
            began = clock()
            work()
            if turn:
                seconds[name].append(clock() - began)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    facts = {
        "forward": f"{options.backbone} at {size}, batch {options.batch}, {options.images} images",
        "precision": precision,
        "threads": torch.get_num_threads(),
        f"images/s ({options.clock})": {
            name: round(options.images / value, 1) for name, value in median.items()
        },
        "ours / timm": round(median["ours"] / median["timm"], 3),
    }
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
