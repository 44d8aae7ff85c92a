"""Two processes under torchrun train what one trains: same order, each image once, the same weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from train_tiny import RECIPE, Tiny, dataset, setting, weights

from mimbench import rng
from mimbench.train import Trained, pretrain

RECIPE_STEADY = RECIPE.model_copy(
    update={"eps": 1e-3}
)  # Adam would magnify the rounding of a sum in two parts


def run(folder: Path, **options) -> tuple[Trained, Tiny]:
    torch.manual_seed(0)
    method = Tiny()
    method.log = True
    trained = pretrain(
        method, dataset(), recipe=RECIPE_STEADY, setting=setting(), seed=0, folder=folder, **options
    )
    return trained, method


PROGRAM = """
    import json, os, signal, sys
    from pathlib import Path
    import torch
    torch.set_num_threads(1)
    from mimbench import checkpoint, train_loop
    from mimbench.errors import UserError
    from test_processes import run
    from train_tiny import Tiny

    out, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    facts = {}

    trained, method = run(out / "whole", micro_batch=3)
    facts["cost"], facts["curve"] = trained.cost, trained.curve
    facts["product"] = trained.product
    facts["keys"] = [step.keys.tolist() for step in method.seen]
    facts["pixels"] = [images.flatten(1).sum(1).tolist() for images in method.images]

    train_loop.LOOK_SECONDS = 0.0
    real = Tiny.after_step

    def interrupted(self, step):  # the signal reaches one process only
        real(self, step)
        if rank == 1 and self.steps == 4:
            os.kill(os.getpid(), signal.SIGINT)

    Tiny.after_step = interrupted
    try:
        run(out / "parts")
    except KeyboardInterrupt:
        facts["interrupted"] = True
    Tiny.after_step = real
    facts["checkpoint"] = (out / "parts" / "checkpoint.pt").exists()
    facts["resumed"] = run(out / "parts")[0].product
    facts["uninterrupted"] = run(out / "other")[0].product

    def full(path, content):
        raise UserError("the disk is full")

    checkpoint.save_checkpoint = full
    try:
        run(out / "full", checkpoint_every=0)
    except UserError as error:
        facts["full"] = str(error)
    (out / f"facts{rank}.json").write_text(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    """Facts of the two processes of one torchrun."""
    out = tmp_path_factory.mktemp("pair")
    (out / "program.py").write_text(textwrap.dedent(PROGRAM))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, str(out / "program.py"), str(out)],
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
    return out, [json.loads((out / f"facts{rank}.json").read_text()) for rank in range(2)]


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo"),
]


def test_two_processes_see_each_image_once_and_in_the_same_order(pair, tmp_path: Path) -> None:
    _, method = run(tmp_path)
    alone = torch.cat([s.keys for s in method.seen]).tolist()
    seen = [[k for keys in facts["keys"] for k in keys] for facts in pair[1]]
    assert [key for both in zip(*seen, strict=True) for key in both] == alone
    expected = [k for e in range(4) for k in rng.sample_keys(0, e, rng.permutation(0, e, 20)).tolist()]
    assert alone == expected
    pixels = [[p for batch in facts["pixels"] for p in batch] for facts in pair[1]]
    both = [value for two in zip(*pixels, strict=True) for value in two]
    np.testing.assert_allclose(both, torch.cat([i.flatten(1).sum(1) for i in method.images]), rtol=1e-5)


def test_two_processes_reach_the_weights_and_losses_of_one(pair, tmp_path: Path) -> None:
    trained, method = run(tmp_path)
    out, facts = pair
    for theirs in facts:
        assert theirs["curve"][0]["loss"] == pytest.approx(trained.curve[0]["loss"], abs=1e-6)
        assert theirs["curve"][-1]["loss"] == pytest.approx(trained.curve[-1]["loss"], abs=1e-4)
        assert [p["images"] for p in theirs["curve"]] == [p["images"] for p in trained.curve]
    two = weights(out / "whole")
    for name, value in method.state_dict().items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_processes_agree_on_products_and_cost(pair, tmp_path: Path) -> None:
    _, (first, second) = pair
    assert first["product"] == second["product"]
    assert first["cost"] == second["cost"]
    alone = run(tmp_path)[0].cost
    assert first["cost"]["processes"] == 2
    for fact in ("images", "flops", "tokens_seen"):
        assert first["cost"][fact] == alone[fact]


def test_a_signal_to_one_process_saves_and_stops_all_and_loses_nothing(pair) -> None:
    for facts in pair[1]:
        assert facts["interrupted"]
        assert facts["checkpoint"]
        assert facts["resumed"] == facts["uninterrupted"]


def test_a_full_disk_on_the_first_process_is_said_by_all(pair) -> None:
    assert [facts["full"] for facts in pair[1]] == ["the disk is full"] * 2
