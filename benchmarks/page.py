"""How long the page of a large board takes to be made, to be opened, and to be sorted and filtered.

    python benchmarks/page.py                                 # 5,000 records: 333 rows, 5 seeds, 2 protocols
    python benchmarks/page.py --seeds 1                       # 1,666 rows: the most that so many records make
    python benchmarks/page.py --browser /usr/bin/chromium     # needs playwright; default: chromium on PATH

Prints JSON: seconds for reading the records, for tables out of them and for the page; the page's size and
its nodes; and, in a headless Chromium, medians of the milliseconds until it is parsed, until it is painted,
of a filter and of a sort with what they do to the layout. The target: painted in less than a second.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from mimbench import records
from mimbench.board import load, tables
from mimbench.outcomes import Hits
from mimbench.report.page import html
from mimbench.spec import Job, Record

SETTING = {
    "data": "imagenette",
    "fingerprint": "0f" * 32,
    "image_size": 128,
    "backbone": "vit_tiny_patch16",
    "budget": {"unit": "epochs", "amount": 100.0},
    "recipe": "shared",
    "batch_size": 512,
    "precision": "bf16",
}
CARD = {
    "paper": "A title of a usual length for a paper",
    "year": 2024,
    "arxiv": "2408.06687",
    "scheme": "reconstruction",
    "masking": "random",
    "target": "low level: pixels",
    "architecture": "ViT encoder on visible patches, transformer decoder",
    "objective": "reconstruction (L2)",
    "classes": {"masking": "random", "target": "pixels", "architecture": "plain", "objective": "L2"},
    "parity": "verified",
    "recipe": "its table 8",
    "notes": "What it does otherwise than the official code, and why. " * 4,
}
METHODS = 60  # with a card of their own; the other rows are their variants
WHEN = "2026-01-01T00:00:00+00:00"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--records", type=int, default=5000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--protocols", type=int, default=2)
    parser.add_argument("--images", type=int, default=1000, help="of the test split")
    parser.add_argument("--rounds", type=int, default=5, help="times that the browser opens it")
    parser.add_argument("--browser", default=shutil.which("chromium"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_records(folder, options)
        print(json.dumps(measured(folder, options), indent=1))


def write_records(folder: Path, options: argparse.Namespace) -> None:
    (folder / "records").mkdir()
    rows = options.records // (options.seeds * (1 + options.protocols))
    rng = np.random.default_rng(0)
    curve = [{"progress": i / 100, "loss": 1 / (1 + i)} for i in range(100)]
    difficulty = rng.random(options.images)
    for number in range(rows):
        method = f"method{number % METHODS}"
        variant = method if number < METHODS else f"{method}[mask_ratio={number / rows:.4f}]"
        for seed in range(options.seeds):
            content: dict[str, Any] = {
                "method": method,
                "variant": variant,
                "settings": {"mask_ratio": number / rows},
                "method_version": 1,
                "setting": SETTING,
                "seed": seed,
                "recipe": {"source": "shared"},
            }
            cost = {
                "wall_seconds": 60.0 + number,
                "flops": 1e15 + number,
                "images_per_second": 100.0 + number,
            }
            card = {**CARD, "key": method, "name": method.upper()}
            trained = record("pretrain", variant, content, cost=cost, curve=curve, facts={"card": card})
            records.write(folder, trained)
            for place in range(options.protocols):
                own = {**content, "protocol": f"probe{place}", "protocol_version": 1, "fields": {"lr": 0.1}}
                hits = Hits(difficulty + 0.3 * rng.random(options.images) < 0.3 + 0.6 * number / rows)
                done = {"cost": cost, "metrics": {"top1": hits.score}, "outcomes": hits.pack()}
                records.write(folder, record("evaluate", variant, own, {trained.id: "1" * 64}, **done))


def record(
    kind: Any, name: str, content: dict[str, Any], needs: dict[str, str] | None = None, **done: Any
) -> Record:
    job = Job(kind=kind, name=name, content=content, needs=tuple(needs or {}))
    given = {"id": job.id, "kind": kind, "name": name, "status": "done", "content": content}
    return Record(**given, needs=needs or {}, started=WHEN, finished=WHEN, **done)


def measured(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    start = time.perf_counter()
    frame = load(folder)
    read = time.perf_counter()
    found = tables(frame)
    built = time.perf_counter()
    page = html(found, folder, folder)
    drawn = time.perf_counter()
    path = folder / "leaderboard.html"
    path.write_text(page, encoding="utf-8")
    figures: dict[str, Any] = {
        "records": len(frame),
        "rows": sum(len(table.rows) for table in found),
        "seconds": {"read": read - start, "tables": built - read, "page": drawn - built},
        "page / read": (drawn - built) / (read - start),
        "bytes a record": len(page.encode()) / len(frame),
    }
    if options.browser:
        figures["browser"] = opened(path, options)
    return figures


STEP = """async () => {
  const settled = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  const name = document.getElementById("filter-name");
  const timed = async (act) => {
    await settled();
    const start = performance.now();
    act();
    await settled();
    return performance.now() - start;
  };
  return {
    filter: await timed(() => {
      name.value = "method1";
      name.dispatchEvent(new Event("input", { bubbles: true }));
    }),
    unfilter: await timed(() => {
      name.value = "";
      name.dispatchEvent(new Event("input", { bubbles: true }));
    }),
    sort: await timed(() => document.querySelector("thead th.number button").click()),
  };
}"""


def opened(path: Path, options: argparse.Namespace) -> dict[str, float]:
    """Nodes of the page, and medians of milliseconds."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=options.browser, args=["--no-sandbox"])
        rounds = []
        for _ in range(options.rounds):
            page = browser.new_page(viewport={"width": 1600, "height": 900})
            page.goto(path.as_uri())
            times = page.evaluate(
                """() => ({
                  parsed: performance.getEntriesByType("navigation")[0].domContentLoadedEventEnd,
                  painted: performance.getEntriesByName("first-contentful-paint")[0]?.startTime ?? NaN,
                  nodes: document.querySelectorAll("*").length,
                })"""
            )
            rounds.append({**times, **page.evaluate(STEP)})
            page.close()
        browser.close()
    return {name: round(statistics.median(one[name] for one in rounds), 1) for name in rounds[0]}


if __name__ == "__main__":
    main()
