"""What a training step of each method costs beyond its networks. Prints one ratio a method.

    python benchmarks/method_steps.py                          # all methods, ViT-Ti/16 at 128, batch 32
    python benchmarks/method_steps.py --methods mae,ibot --rounds 7

A step is forward, backward and what follows the optimiser's step (moving averages). Its networks are the
encoder, decoders, heads, moving averages, teachers and tokenizers: every module a method holds, timed
while it is called. The rest (masks, targets, losses) is what remains. How much of it has a backward pass
is not known, so the ratio, step / (step - rest), has two bounds: without any, and with one that takes
twice the forward pass.

The target: at most 1.3. LocalMIM is the one whose upper bound lies above it: its histograms of gradients,
which have no backward pass, are counted as if they had one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from mimbench import registry
from mimbench.data import training_batches
from mimbench.method import Method
from mimbench.method_table import Noise, untrained
from mimbench.precision import make_fabric
from mimbench.recipes import SHARED_RECIPE
from mimbench.spec import Augmentation, Budget, Setting
from mimbench.train_step import TrainStep

TARGET = 1.3
# Ways in which methods call the modules they hold.
CALLS = ("forward", "encode", "embed", "transform", "encode_ids", "ids", "nearest", "query_key_value")


class Clock:
    """Time spent inside of wrapped calls; one inside another counts once."""

    def __init__(self, now: Callable[[], float]):
        self.now, self.seconds, self.depth = now, 0.0, 0

    def wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = self.now()
            self.depth += 1
            try:
                return call(*args, **kwargs)
            finally:
                self.depth -= 1
                if not self.depth:
                    self.seconds += self.now() - began

        return timed


def measure(method: Method, setting: Setting, rounds: int, now: Callable[[], float]) -> tuple[float, ...]:
    """Seconds of a step and the two bounds of its ratio, each the median over rounds."""
    clock = Clock(now)
    for module in method.modules():
        for name in CALLS:
            call = getattr(module, name, None)
            if module is not method and callable(call) and not isinstance(call, torch.nn.Module):
                setattr(module, name, clock.wrap(call))
    (batches,) = training_batches(
        Noise(setting.image_size, setting.batch_size),  # type: ignore[arg-type]
        augmentation=Augmentation(),
        image_size=setting.image_size,
        seed=0,
        batch_size=setting.batch_size,
        stop=1,
        views=method.views,
    )
    step = TrainStep(method, SHARED_RECIPE, setting.batch_size, make_fabric("fp32", "cpu"))
    images, moment = step.inputs(batches[0], 0.5)
    whole, low, high = [], [], []
    for _ in range(rounds + 1):  # the first warms up
        clock.seconds, began = 0.0, now()
        loss = method(images, moment).total
        outside = now() - began - clock.seconds
        loss.backward()
        before = now()
        method.after_step(moment)
        ended = now()
        method.zero_grad(set_to_none=True)
        step_seconds, after = ended - began, ended - before
        whole.append(step_seconds)
        low.append(step_seconds / (step_seconds - outside - after))
        high.append(step_seconds / (step_seconds - 3 * outside - after))
    return tuple(statistics.median(values[1:]) for values in (whole, low, high))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--methods", help="keys with commas between; default: all")
    parser.add_argument("--backbone", default="vit_tiny_patch16")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)  # so that the process's clock is the step's, whatever else the machine does

    setting = Setting(
        data="noise",
        fingerprint="",
        image_size=options.image_size,
        backbone=options.backbone,
        budget=Budget(amount=1),
        recipe="shared",
        batch_size=options.batch,
        precision="fp32",
    )
    keys = [key for key, cls in registry.methods().items() if cls.card.role == "method"]
    bounds = {}
    for key in options.methods.split(",") if options.methods else keys:
        method = untrained(key, setting)
        seconds, low, high = measure(method, setting, options.rounds, time.process_time)
        bounds[key] = (round(low, 3), round(high, 3))
        print(f"{key:16} {1000 * seconds:7.0f} ms a step, {low:.2f} to {high:.2f} x its networks", flush=True)
    above = {key: pair for key, pair in bounds.items() if pair[1] > TARGET}
    print(json.dumps({"target": TARGET, "worst": max(bounds.values()), "above": above}))


if __name__ == "__main__":
    main()
