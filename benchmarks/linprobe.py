"""What it costs to train all candidates of the linear probe at once. Prints ratios and seconds.

    python benchmarks/linprobe.py                            # several sizes, all cores
    python benchmarks/linprobe.py --clock cpu --threads 1    # on a machine that is busy

Features are made up and at hand, so nothing but training is timed, over the same number of steps each:

- all: the probe's own grid, 5 learning rates × 6 readouts × with and without batch norm, in one pass;
- one: each kind of candidate (6 readouts × with and without) alone by the same code, mean over the kinds;
- naive: one candidate by nn.Linear, autograd, torch.optim.SGD and a scheduler, mean over the kinds;
- products: the matrix products of all of them alone, the least any exact way of training them could take.

The target is all / one of at most 1.5. Sixty candidates have sixty times the multiplications of one, so
where these outweigh the constant cost of a step, no exact way of training reaches it; all / products says
how much of the time is anything else.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mimbench.spec import Readout
from protocols.linprobe import LinearProbe
from protocols.parts.batches import at_hand, stream
from protocols.parts.course import Course
from protocols.parts.fitted import BN_EPS, Head, exact_standards
from protocols.parts.frozen import standard
from protocols.parts.inputs import inputs_of
from protocols.parts.linear import LinearHeads

SIZES = ("1080x96x10", "8500x192x10", "8500x384x10", "50000x384x100")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="images x features x classes")
    parser.add_argument("--batch", type=int, default=LinearProbe().batch_size)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5, help="timed turns of each, the fastest counts")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="default: what torch chooses")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: for a busy machine, with --threads 1"
    )
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    for size in options.sizes:
        print(json.dumps(measure(*map(int, size.split("x")), options), indent=2), flush=True)


def measure(count: int, dim: int, classes: int, options: argparse.Namespace) -> dict[str, object]:
    probe = LinearProbe()
    inputs = [inputs_of_depth(text) for text in probe.readouts]
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (count,), generator=generator)
    centres = torch.randn(classes, dim, generator=generator)
    train = {
        part: (centres[labels] + 2 * torch.randn(count, dim, generator=generator)).to(options.device)
        for parts in inputs
        for part in parts
    }
    labels = labels.to(options.device)
    kinds = list(product(inputs, probe.batch_norm))
    everything = [Head(parts, lr, norm) for (parts, norm), lr in product(kinds, probe.lr)]

    def together(heads: list[Head]) -> Callable[[], object]:
        needed = {part: train[part] for head in heads for part in head.parts}
        course = Course(options.steps, options.batch, (options.steps,))
        fitted = LinearHeads(
            heads,
            dict.fromkeys(needed, dim),
            classes,
            standards=exact_standards(heads, needed),
            device=options.device,
        )

        def fit() -> None:
            for step, batch in enumerate(at_hand(needed, labels, 0, course)(0, options.steps)):
                fitted.learn(*batch, options.batch, course.factor(step))

        return fit

    turns = {"all": together(everything), "products": products(everything, train, classes, options)}
    for i, (parts, norm) in enumerate(kinds):
        head = Head(parts, 0.1, norm)
        turns[f"one {i}"] = together([head])
        turns[f"naive {i}"] = naive(head, train, labels, classes, options)
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    best = dict.fromkeys(turns, math.inf)
    for turn in range(options.rounds + 1):
        for name, work in turns.items():
            began = clock()
            work()
            if options.device != "cpu":
                torch.cuda.synchronize()
            if turn:
                best[name] = min(best[name], clock() - began)
    one, naive_one = (
        sum(best[f"{name} {i}"] for i in range(len(kinds))) / len(kinds) for name in ("one", "naive")
    )
    seconds = {"all": best["all"], "one": one, "naive": naive_one, "products": best["products"]}
    steps = max(probe.min_steps, round(probe.epochs * count / options.batch))
    return {
        "size": f"{count} images, {dim} features, {classes} classes, batch {options.batch}",
        "device": options.device,
        "threads": torch.get_num_threads(),
        f"microseconds a step ({options.clock})": {
            name: round(value / options.steps * 1e6) for name, value in seconds.items()
        },
        "candidates": len(everything),
        "all / one": round(best["all"] / one, 2),
        "all / naive": round(best["all"] / naive_one, 2),
        "all / products": round(best["all"] / best["products"], 2),
        "gain over as many naive ones": round(len(everything) * naive_one / best["all"], 1),
        f"seconds of a probe of {steps} steps": round(best["all"] / options.steps * steps, 1),
    }


class OfDepth:
    """What an input needs to know of an encoder."""

    depth, has_cls = 12, True


def inputs_of_depth(text: str) -> tuple[Readout, ...]:
    found, _ = inputs_of([text], OfDepth(), "linprobe")  # type: ignore[arg-type]
    return next(iter(found.values()))


def naive(
    head: Head, train: dict[Readout, Tensor], labels: Tensor, classes: int, options: argparse.Namespace
) -> Callable[[], object]:
    """The training loop everybody writes, on features that are standardised beforehand."""
    x = torch.cat([train[part] for part in head.parts], 1)
    if head.batch_norm:
        x = standard(x, BN_EPS)(x)
    model = nn.Linear(x.shape[1], classes).to(x.device)

    def fit() -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=head.lr, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
        for batch in stream(0, len(x), options.batch, options.steps):
            batch = batch.to(x.device)
            loss = F.cross_entropy(model(x[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()

    return fit


def products(
    heads: list[Head], train: dict[Readout, Tensor], classes: int, options: argparse.Namespace
) -> Callable[[], object]:
    """Logits and gradients of all heads, a matrix product for each input: nothing else."""
    reading: dict[tuple[Readout, bool], int] = {}
    for head in heads:
        for part in head.parts:
            reading[part, head.batch_norm] = reading.get((part, head.batch_norm), 0) + classes
    work = []
    for (part, _), rows in reading.items():
        x = train[part][: options.batch].clone()
        x = x.repeat(-(-options.batch // len(x)), 1)[: options.batch]
        weight, z = torch.zeros(rows, x.shape[1], device=x.device), torch.zeros(rows, len(x), device=x.device)
        work.append((weight, weight.clone(), x, z))

    def run() -> None:
        for _ in range(options.steps):
            for weight, gradient, x, z in work:
                torch.mm(weight, x.T, out=z)
                torch.mm(z, x, out=gradient)

    return run


if __name__ == "__main__":
    main()
