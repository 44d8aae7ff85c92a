"""Budgets, products, cost, health and reports of a whole run."""

from __future__ import annotations

import inspect
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from train_tiny import (
    RECIPE,
    Labelled,
    Tiny,
    TinyBackbone,
    TinyTokenizer,
    Untrained,
    dataset,
    setting,
    weights,
)

import mimbench.data
from mimbench import checkpoint, train_loop
from mimbench.cost import Cost, measuring
from mimbench.errors import UserError
from mimbench.method import Losses
from mimbench.monitor import Health, LearningCurve
from mimbench.precision import make_fabric, native_precisions, resolve_precision
from mimbench.progress import Progress
from mimbench.spec import Augmentation
from mimbench.train import Trained, TrainingStopped, build_method, pretrain, seeded_init


def run(folder: Path, method: Tiny | None = None, data=None, recipe=RECIPE, **options) -> Trained:
    torch.manual_seed(0)
    chosen = {name: options.pop(name) for name in ("amount", "unit", "batch_size") if name in options}
    return pretrain(
        method or Tiny(),
        data or dataset(),
        recipe=recipe,
        setting=setting(**chosen),
        seed=0,
        folder=folder,
        **options,
    )


class Clock:
    """Goes on by ``tick`` seconds each time it is read."""

    def __init__(self, tick: float):
        self.now, self.tick = 0.0, tick

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


# -- budgets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "amount", "batch_size", "steps"),
    [
        ("epochs", 4, 8, 10),
        ("epochs", 0.5, 8, 1),
        ("images", 41, 8, 5),
        ("images", 1, 8, 1),
        ("epochs", 3, 30, 2),
    ],
)
def test_a_budget_is_met_to_the_nearest_step(
    tmp_path: Path, unit: str, amount: float, batch_size: int, steps: int
) -> None:
    method = Tiny()
    method.log = True
    trained = run(tmp_path, method, unit=unit, amount=amount, batch_size=batch_size)
    assert trained.cost["images"] == steps * batch_size
    assert [s.progress for s in method.seen] == [i / steps for i in range(steps)]


def test_every_image_is_seen_once_an_epoch(tmp_path: Path) -> None:
    method = Tiny()
    method.log = True
    run(tmp_path, method, amount=2, batch_size=5)
    keys = torch.cat([s.keys for s in method.seen])
    assert len(keys) == len(keys.unique()) == 40


def test_a_budget_in_flops_counts_forward_and_backward(tmp_path: Path) -> None:
    """A matrix product costs 2·B·in·out; its backward two of them, one for the first layer."""
    per_image = 2 * 48 * 16 * (2 + 3 + 1)  # encoder (no input gradient), decoder, teacher (forward only)
    method = Tiny()
    method.log = True
    trained = run(tmp_path, method, unit="flops", amount=per_image * 8 * 6)
    assert trained.cost["flops"] == per_image * 8 * 6
    assert [s.progress for s in method.seen] == [i / 6 for i in range(6)]
    assert trained.cost["tokens_seen"] == 48  # one token an image, the teacher's not counted


def test_a_budget_in_hours_ends_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_loop, "monotonic", Clock(1.0))
    method = Tiny()
    method.log = True
    trained = run(tmp_path, method, unit="hours", amount=60 / 3600, checkpoint_every=1e9)
    progress = [s.progress for s in method.seen]
    assert progress[0] == 0
    assert progress == sorted(progress)
    assert 0.9 < progress[-1] < 1
    assert 60 <= trained.cost["wall_seconds"] < 70


def test_attention_costs_the_same_whichever_kernel_runs_it() -> None:
    batch, heads, n, d = 2, 3, 10, 8
    q, k, v = (torch.randn(batch, heads, n, d, requires_grad=True) for _ in range(3))
    counted = []
    for mask in (None, torch.zeros(n, n, requires_grad=True)):  # fused kernel; plain matrix products
        with measuring(nn.Identity()) as measured:
            F.scaled_dot_product_attention(q, k, v, attn_mask=mask).sum().backward()
        counted.append(measured.flops)
    assert counted == [3 * 2 * 2 * batch * heads * n * n * d] * 2
    assert measured.tokens is None


@pytest.mark.parametrize("by_parts", [False, True])
def test_tokens_are_counted_once_however_the_blocks_are_called(by_parts: bool) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.mlp = nn.LayerNorm(4), nn.Linear(4, 4)

        def forward(self, x):
            return self.mlp(self.norm(x))

    encoder = nn.Module()
    encoder.blocks = nn.ModuleList([Block(), Block()])
    with measuring(encoder) as measured:
        for batch in (2, 3):
            x = torch.randn(batch, 7, 4)
            for block in encoder.blocks:
                x = block.mlp(block.norm(x)) if by_parts else block(x)
    assert measured.tokens == (2 + 3) * 7
    assert measured.flops == (2 + 3) * 7 * 2 * 2 * 4 * 4


# -- products ----------------------------------------------------------------------------------------


def test_products_load_strictly_and_are_named_by_their_hash(tmp_path: Path) -> None:
    method = Tiny()
    trained = run(tmp_path, method)
    assert trained.product == {
        name: checkpoint.sha256(tmp_path / name) for name in ("encoder.safetensors", "method.safetensors")
    }
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(trained.product)
    again = Tiny()
    metadata = checkpoint.load_weights(again, tmp_path / "method.safetensors")
    assert metadata["method"] == "tiny"
    assert all(
        torch.equal(a, b)
        for a, b in zip(method.state_dict().values(), again.state_dict().values(), strict=True)
    )


def test_a_tokenizer_leaves_one_file_that_says_how_to_rebuild_it(tmp_path: Path) -> None:
    trained = run(tmp_path, TinyTokenizer())
    assert list(trained.product) == ["tokenizer.safetensors"]
    _, metadata = checkpoint.read_weights(tmp_path / "tokenizer.safetensors")
    assert (metadata["method"], metadata["config"]) == ("tiny_tokenizer", {"width": 16})


def test_an_untrained_method_costs_nothing_and_keeps_its_weights(tmp_path: Path) -> None:
    method = Untrained()
    initial = {k: v.clone() for k, v in method.state_dict().items()}
    trained = run(tmp_path, method, recipe=None)
    assert all(torch.equal(initial[k], v) for k, v in weights(tmp_path).items())
    assert trained.cost["flops"] == trained.cost["images"] == trained.cost["wall_seconds"] == 0
    assert trained.cost["parameters_encoder"] == 48 * 16 + 16
    assert trained.curve == []


def test_the_encoder_of_a_product_is_rebuilt_from_the_file_alone(tmp_path: Path) -> None:
    with seeded_init(0):
        from mimbench.registry import build_backbone

        backbone = build_backbone("vit_micro_patch2", SIZE := 4, depth=1)
    method = Untrained(Tiny().encoder)
    method.encoder = backbone
    run(tmp_path, method, recipe=None)
    encoder = checkpoint.load_encoder(tmp_path)
    images = torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (method.card.mean, method.card.std))
    expected = backbone.eval().encode((images / 255 - mean) / std)
    torch.testing.assert_close(encoder(images).patches.flatten(1, 2), expected.patches)
    with pytest.raises(UserError, match="does not say which backbone"):
        checkpoint.load_encoder(tmp_path / "method.safetensors")


def test_the_same_seed_gives_the_same_weights_and_another_does_not() -> None:
    from method_zoo.mae import MAE

    def state(seed: int) -> dict[str, torch.Tensor]:
        chosen = setting().model_copy(update={"backbone": "vit_micro_patch2"})
        torch.rand(3)
        return build_method(MAE, setting=chosen, settings={"decoder_depth": 1}, seed=seed).state_dict()

    first, second, other = state(0), state(0), state(1)
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


def test_initialising_leaves_the_outer_generator_alone() -> None:
    before = torch.get_rng_state()
    with seeded_init(0):
        torch.rand(5)
    assert torch.equal(before, torch.get_rng_state())


# -- health ------------------------------------------------------------------------------------------


class Sick(Tiny):
    """Its loss becomes ``value`` from step ``since`` on."""

    def __init__(self, value: float, since: int):
        super().__init__()
        self.value, self.since = value, since

    def forward(self, images, step):
        losses = super().forward(images, step)
        if self.steps >= self.since:
            losses = Losses(pixels=losses["pixels"] * 0 + self.value)
        return losses


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_no_product(tmp_path: Path, value: float) -> None:
    with pytest.raises(TrainingStopped, match=rf"'pixels' became {value} at step 6"):
        run(tmp_path, Sick(value, since=5), amount=20)
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize(("value", "at"), [(0.0, Health.ZERO_STEPS), (0.3, Health.CONSTANT_STEPS)])
def test_a_collapsed_loss_stops_the_run(tmp_path: Path, value: float, at: int) -> None:
    with pytest.raises(
        TrainingStopped, match=rf"collapsed: it was exactly {value:g} for {at} steps up to step {at + 5}"
    ):
        run(tmp_path, Sick(value, since=5), amount=100)


def test_a_loss_that_only_hardly_moves_is_no_collapse() -> None:
    health = Health()
    for step in range(1000):
        health.check(step, {"loss": 1.0 + 1e-9 * (step % 2)})


def test_a_plateau_in_bf16_is_no_collapse() -> None:
    """Near ln 8192 bf16 knows steps of 1/16 only."""
    health = Health()
    for step in range(1000):
        health.check(step, {"loss": torch.tensor(9.01 + step / 1e5).bfloat16().item()})


# -- what surrounds the loop -------------------------------------------------------------------------


def test_the_curve_keeps_its_shape_in_few_points(tmp_path: Path) -> None:
    short = run(tmp_path / "short", amount=4).curve
    assert len(short) == 10
    assert short[0]["loss"] == pytest.approx(short[0]["loss/pixels"] + short[0]["loss/teacher"])
    assert [p["images"] for p in short] == [8 * i for i in range(1, 11)]
    curve = LearningCurve(points=50)
    for step in range(1000):
        curve.add(step / 1000, step, 0.1, {"x": float(step)})
    assert len(curve.points) == 50
    assert [p["loss"] for p in curve.points] == [20 * i + 9.5 for i in range(50)]


def test_reports_come_at_most_four_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(0.01)
    monkeypatch.setattr(train_loop, "monotonic", clock)
    reports: list[tuple[float, Progress]] = []
    run(tmp_path, amount=100, report=lambda p: reports.append((clock.now, p)))
    assert len(reports) > 3
    times = [t for t, _ in reports[:-1]]
    assert min(b - a for a, b in pairwise(times)) >= 0.24
    first, *_, last = (p for _, p in reports)
    assert (first.done, last.done, last.seconds_left) == (0, 1, 0)
    assert last.rate > 0
    assert last.loss > 0


def test_images_are_not_mirrored_where_the_dataset_forbids_it(tmp_path: Path, monkeypatch) -> None:
    asked: list[Augmentation] = []
    real = mimbench.data.training_batches
    monkeypatch.setattr(
        mimbench.data, "training_batches", lambda *a, **k: asked.append(k["augmentation"]) or real(*a, **k)
    )
    run(tmp_path / "a", data=dataset(flip=False))
    run(tmp_path / "b", data=dataset(flip=True))
    assert [a.flip for a in asked] == [False, True]


def test_learning_from_labels_that_are_not_there_is_said_before_work_starts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tiny_labelled learns from labels, which tiny does not have"):
        run(tmp_path / "new", Labelled(), data=dataset(labelled=False))
    assert not (tmp_path / "new").exists()


def test_too_little_memory_names_the_way_out(tmp_path: Path) -> None:
    class Huge(Tiny):
        def forward(self, images, step):
            torch.empty(1 << 50)
            return super().forward(images, step)

    with pytest.raises(
        UserError, match="too little memory for 8 images at once; take fewer, such as --micro-batch 4"
    ):
        run(tmp_path, Huge())


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*below: Not a directory"):
        run(tmp_path / "file" / "below")


def test_micro_batches_do_not_change_the_cost(tmp_path: Path) -> None:
    whole, parts = run(tmp_path / "a").cost, run(tmp_path / "b", micro_batch=3).cost
    for fact in ("flops", "images", "tokens_seen"):
        assert whole[fact] == parts[fact]


def test_what_came_before_is_added_up_and_shown_apart() -> None:
    tokenizer = Cost(wall_seconds=10, flops=5.0, images=7)
    cost = Cost(wall_seconds=1, flops=2.0, images=3).with_external(tokenizer=tokenizer)
    assert cost.total == {"wall_seconds": 11, "flops": 7.0, "images": 10}
    assert cost.flops == 2.0
    assert Cost(**cost.content()) == cost


def test_dropout_layers_of_two_steps_draw_differently(tmp_path: Path) -> None:
    masks = []

    class Drawing(Tiny):
        def forward(self, images, step):
            masks.append(torch.rand(4))
            return super().forward(images, step)

    run(tmp_path, Drawing(TinyBackbone()))
    assert len({tuple(m.tolist()) for m in masks}) == 10


# -- precision ---------------------------------------------------------------------------------------


def test_auto_is_bf16_exactly_where_the_processor_has_it() -> None:
    info = Path("/proc/cpuinfo")
    if not info.is_file() or not torch.backends.mkldnn.is_available():
        pytest.skip("needs /proc/cpuinfo and oneDNN")
    has = any(name in info.read_text().split() for name in ("avx512_bf16", "amx_bf16", "bf16"))
    assert resolve_precision("auto", "cpu") == ("bf16" if has else "fp32")


def test_a_precision_the_device_lacks_is_refused() -> None:
    with pytest.raises(UserError, match="fp16 is not native to this cpu"):
        resolve_precision("fp16", "cpu")
    with pytest.raises(UserError, match="fp16 is not native to this cpu"):
        make_fabric("fp16", "cpu")
    with pytest.raises(UserError, match="'fp8' is unknown"):
        resolve_precision("fp8", "cpu")
    assert resolve_precision("fp32", "cpu") == "fp32"


@pytest.mark.skipif("bf16" not in native_precisions("cpu"), reason="no bf16 here")
def test_a_fabric_of_another_precision_is_a_bug_not_a_result(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the fabric trains in bf16, the setting says fp32"):
        run(tmp_path, fabric=make_fabric("bf16", "cpu"))


def test_the_signature_is_the_one_callers_rely_on() -> None:
    parameters = inspect.signature(pretrain).parameters
    assert list(parameters)[:2] == ["method", "dataset"]
    assert {"recipe", "setting", "seed", "folder", "report", "micro_batch", "workers", "fabric"} <= set(
        parameters
    )
