"""What it costs to train all candidates of the attentive probe at once. Prints milliseconds a step.

    python benchmarks/attentive.py --clock cpu --threads 1

Tokens are made up and at hand, so nothing but training is timed:

- all: the candidates of the protocol's own grid that pool alike from one layer, in one pass;
- one: one of them alone by the same code;
- loop: as many modules as the papers' code has them (keys and values of all tokens through
  ``scaled_dot_product_attention``), autograd, one ``torch.optim.AdamW``, one after the other.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import torch
from torch.nn import functional as F

from protocols.attentive import AttentiveProbe
from protocols.parts.attentive_heads import AttentiveHeads, Candidate
from protocols.parts.pooling import Pooling, heads_of
from protocols.parts.processes import Team

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "protocols"))
from plain_pooling import MODULES

SIZES = ("16x96x10", "64x192x10", "196x384x100")


class Here(Team):
    """This process alone, on one device."""

    def __init__(self, device: str):
        self.world, self.rank, self.device, self._fabric = 1, 0, torch.device(device), None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="tokens x features x classes")
    parser.add_argument("--batch", type=int, default=AttentiveProbe().batch_size)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3, help="timed turns of each, the fastest counts")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="default: what torch chooses")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    for size in options.sizes:
        tokens, width, classes = map(int, size.split("x"))
        for pooling in MODULES:
            measure(pooling, tokens, width, classes, options)


def measure(pooling: Pooling, count: int, width: int, classes: int, options: argparse.Namespace) -> None:
    probe, device = AttentiveProbe(), options.device
    x = torch.randn(options.batch, count, width, device=device)
    labels = torch.randint(classes, (options.batch,), device=device)
    candidates = [Candidate(pooling, -1, lr, decay) for decay, lr in product(probe.weight_decay, probe.lr)]

    def together(some: list[Candidate]) -> Callable[[], None]:
        heads = AttentiveHeads(
            some, width, classes, Here(device), seed=0, optimizer="adamw", momentum=0.9, beta2=0.95, clip=0.0
        )
        return lambda: heads.learn([({-1: x}, labels)], options.batch, 1.0)

    modules = [MODULES[pooling](width, classes, heads_of(pooling, width)).to(device) for _ in candidates]
    groups = [{"params": module.parameters()} for module in modules]
    optimizer = torch.optim.AdamW(groups, lr=0.001)

    def loop() -> None:
        optimizer.zero_grad()
        for module in modules:
            F.cross_entropy(module(x), labels).backward()
        optimizer.step()

    found = {
        name: timed(turn, options)
        for name, turn in {"all": together(candidates), "one": together(candidates[:1]), "loop": loop}.items()
    }
    times = ", ".join(f"{name} {1000 * seconds:.1f}" for name, seconds in found.items())
    print(
        f"{pooling}, {count} tokens of {width}, {classes} classes, batch {options.batch}, "
        f"{len(candidates)} candidates on {device}: ms a step ({options.clock}) {times}; "
        f"all / one {found['all'] / found['one']:.1f}, loop / all {found['loop'] / found['all']:.1f}",
        flush=True,
    )


def timed(turn: Callable[[], None], options: argparse.Namespace) -> float:
    """Seconds of one call, the fastest of several rounds."""
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    best = float("inf")
    for _ in range(options.rounds + 1):
        began = clock()
        for _ in range(options.steps):
            turn()
        if options.device != "cpu":
            torch.cuda.synchronize()
        best = min(best, (clock() - began) / options.steps)
    return best


if __name__ == "__main__":
    main()
