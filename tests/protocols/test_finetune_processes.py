"""Two processes under torchrun fine-tune as one does, and go on together from where they were stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from protocol_toys import ToyDataset, toy_encoder

from mimbench.features import FeatureStore
from mimbench.precision import make_fabric
from mimbench.protocol import Evaluation, Surroundings
from protocols.finetune import FineTune

PROTOCOL = FineTune(epochs=1, min_steps=20, batch_size=24, lr=(0.02, 0.05), erasing=0.5, ema=0.5)


def run(folder: Path, fabric: Fabric, **options: Any) -> Evaluation:
    report = options.pop("report", lambda progress: None)
    where = Surroundings(
        FeatureStore(folder), 0, report, fabric=fabric, folder=folder / "scratch", micro_batch=7
    )
    return PROTOCOL.evaluate(toy_encoder(), ToyDataset(), where)


def facts(found: Evaluation) -> dict[str, Any]:
    return {
        "outcomes": found.outcomes.pack(),
        "metrics": found.metrics,
        "candidates": found.selection["candidates"],
        "losses": [point["loss"] for point in found.curve],
        "flops": found.facts["training"]["flops"],
    }


PROGRAM = """
    import json, os, signal, sys
    from pathlib import Path
    import torch
    torch.set_num_threads(1)
    from mimbench import train_loop
    from mimbench.precision import make_fabric
    from test_finetune_processes import facts, run

    out, rank, fabric = Path(sys.argv[1]), int(os.environ["RANK"]), make_fabric("fp32", "cpu")
    told = {"whole": facts(run(out / "whole", fabric))}
    train_loop.LOOK_SECONDS, sent = 0.0, []

    def report(progress):  # the first process alone is told, and signalled
        if progress.stage == "fine-tuning 2 of 2" and progress.done > 0.4 and not sent:
            sent.append(os.kill(os.getpid(), signal.SIGTERM))

    try:
        run(out / "parts", fabric, report=report)
    except SystemExit:
        told["stopped"] = True
    told["parts"] = facts(run(out / "parts", fabric))
    (out / f"told{rank}.json").write_text(json.dumps(told))
"""


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
def test_two_processes_end_where_one_does_stopped_or_not(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, str(tmp_path / "program.py"), str(tmp_path)],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"told{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first["stopped"]
    assert first["parts"] == first["whole"]
    alone = facts(run(tmp_path / "alone", make_fabric("fp32", "cpu")))
    two = first["whole"]
    assert two["losses"] == pytest.approx(alone["losses"], abs=2e-4)
    assert two["losses"][:3] == pytest.approx(alone["losses"][:3], abs=1e-6)
    assert (two["outcomes"], two["metrics"]) == (alone["outcomes"], alone["metrics"])
    assert (two["candidates"], two["flops"]) == (alone["candidates"], alone["flops"])
    assert alone["losses"][-1] < alone["losses"][0]
