"""What the k-NN vote costs beyond a bare blockwise matrix product and top-k. Prints ratio and memory.

    python benchmarks/knn.py                                  # 50,000 × 10,000 features of 384
    python benchmarks/knn.py --clock cpu --threads 1          # on a machine that is busy

Both take turns on the same features and the same blocks:

- bare: ``torch.mm`` of a block of queries with the bank, ``topk`` of the largest k, nothing else;
- k-NN: unit length of bank and queries, the same product, neighbours in a definite order, weighted votes
  for every k, hits.

The targets: k-NN / bare at most 1.3; less than 1 GB of memory, features included.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from protocols.knn import KNN, class_votes
from protocols.parts.neighbours import block_shape, unit

CLASSES = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--bank", type=int, default=50_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=3, help="timed turns of each")
    parser.add_argument("--threads", type=int, help="default: what torch chooses")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: for a busy machine, with --threads 1"
    )
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    empty = resident()

    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, options.dim, generator=generator)
    labels = [torch.randint(CLASSES, (n,), generator=generator) for n in (options.bank, options.queries)]
    bank, queries = (
        centres[y].add_(torch.randn(len(y), options.dim, generator=generator), alpha=3) for y in labels
    )
    ks = KNN().k
    assert isinstance(ks, tuple)

    def knn() -> None:
        class_votes(unit(bank), unit(queries), labels[0], labels[1], classes=CLASSES, ks=ks, temperature=0.07)

    bank_unit, queries_unit = unit(bank), unit(queries)
    times: dict[str, list[float]] = {"bare": [], "knn": []}
    for turn in range(options.rounds):
        times["knn"].append(timed(knn, clock))
        if turn == 0:  # before anything else could raise the mark
            peak = resident() - empty
        times["bare"].append(timed(lambda: bare(queries_unit, bank_unit, max(ks)), clock))
    best = {name: min(seconds) for name, seconds in times.items()}
    print(
        json.dumps(
            {
                "sizes": [options.bank, options.queries, options.dim],
                "clock": options.clock,
                "threads": torch.get_num_threads(),
                "seconds": {name: round(seconds, 2) for name, seconds in best.items()},
                "knn / bare": round(best["knn"] / best["bare"], 3),
                "knn / bare, median of turns": round(
                    statistics.median(a / b for a, b in zip(times["knn"], times["bare"], strict=True)), 3
                ),
                "peak memory, GB": round(peak / 1e9, 3),
                "of it features": round((bank.nbytes + queries.nbytes) * 2 / 1e9, 3),
            },
            indent=2,
        )
    )


def bare(queries: Tensor, bank: Tensor, k: int) -> None:
    height, width = block_shape(len(queries), len(bank))
    similarity = torch.empty(height, width)
    for rows in queries.split(height):
        for columns in bank.split(width):
            block = similarity.view(-1)[: len(rows) * len(columns)].view(len(rows), len(columns))
            torch.mm(rows, columns.T, out=block)
            block.topk(k, dim=1)


def timed(work: Callable[[], None], clock: Callable[[], float]) -> float:
    started = clock()
    work()
    return clock() - started


def resident() -> int:
    """The most memory this process has held so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
