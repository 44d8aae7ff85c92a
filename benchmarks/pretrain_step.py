"""What the harness's training step costs beyond the bare step, and what bf16 gains. Prints ratios.

    python benchmarks/pretrain_step.py                       # mae, ViT-S/16 at 224, batch 32, all cores
    python benchmarks/pretrain_step.py --rounds 2 --batch 8 --backbone vit_tiny_patch16

Three steps take turns on the same images, so that a machine that slows down slows all of them:

- bare: forward, backward and fused AdamW of the same modules under autocast, nothing else;
- harness: ``mimbench.train_step.TrainStep`` in the same precision (auto);
- fp32: the same in fp32.

The targets: harness / bare at most 1.05; fp32 / harness at least 1.5 where the CPU computes bf16.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from mimbench.data import Batch
from mimbench.method import Step
from mimbench.precision import make_fabric, resolve_precision
from mimbench.registry import find_method
from mimbench.spec import Budget, Setting
from mimbench.train import build_method
from mimbench.train_step import TrainStep, build_optimizer

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--method", default="mae")
    parser.add_argument("--backbone", default="vit_small_patch16")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument(
        "--rounds", type=int, default=7, help="timed turns of each step, after one to warm up"
    )
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--threads", type=int, help="default: what torch chooses")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: for a busy machine, with --threads 1"
    )
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)

    cls, precision = find_method(options.method), resolve_precision("auto", options.accelerator)
    recipe = cls.card.recipe
    if recipe is None:
        parser.error(f"{options.method} is never trained")
    fabric = make_fabric(precision, options.accelerator)
    device = fabric.device

    def method():
        setting = Setting(
            data="made up",
            fingerprint="",
            image_size=options.image_size,
            backbone=options.backbone,
            budget=Budget(amount=1),
            recipe="paper",
            batch_size=options.batch,
            precision=precision,
        )
        return build_method(cls, setting=setting, settings={}, seed=0, num_classes=10, recipe=recipe)

    torch.manual_seed(0)
    shape = (options.batch, 3, options.image_size, options.image_size)
    batch = Batch(
        torch.randint(0, 256, shape, dtype=torch.uint8),
        torch.randint(0, 10, (options.batch,)),
        torch.randint(0, 2**62, (options.batch,)),
    )
    harness = TrainStep(method(), recipe, options.batch, fabric)
    fp32 = TrainStep(method(), recipe, options.batch, make_fabric("fp32", options.accelerator))

    bare = method().to(device).train()
    optimizer = build_optimizer(bare, recipe, options.batch, fused=precision != "fp16")
    images = torch.randn(shape, device=device)
    labels = batch.labels.to(device) if cls.card.external == "labels" else None
    step = Step(0.5, batch.keys.to(device), labels)

    def bare_step() -> None:
        with torch.autocast(device.type, AUTOCAST.get(precision), enabled=precision in AUTOCAST):
            loss = bare(images, step).total
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    turns: dict[str, Callable[[], object]] = {
        "bare": bare_step,
        "harness": lambda: harness([batch], 0.5),
        "fp32": lambda: fp32([batch], 0.5),
    }
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for turn in range(options.rounds + 1):
        for name, work in turns.items():
            began = clock()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(clock() - began)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    facts = {
        "step": f"{options.method}, {options.backbone} at {options.image_size}, batch {options.batch}",
        "precision": precision,
        "threads": torch.get_num_threads(),
        f"median {options.clock} seconds": {name: round(value, 4) for name, value in median.items()},
        "harness / bare": round(median["harness"] / median["bare"], 3),
        "fp32 / harness": round(median["fp32"] / median["harness"], 3),
    }
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
