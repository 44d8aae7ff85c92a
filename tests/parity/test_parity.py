"""Each method's loss and gradients are the official implementation's, on the same weights and draws.

Figures shipped here need nothing else. ``MIMBENCH_PARITY`` may name a folder of more records, full ones
(``<method>/*.pt``) or figures; those of methods without an adapter are counted and skipped.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

import method_zoo.parts.losses
from method_zoo.parts.patches import patchify
from mimbench import registry
from mimbench.method import Losses, Method

from . import formula
from .adapter import adapters
from .records import Official, each, is_run, read

ADAPTERS = adapters()
FIGURES = Path(__file__).parent / "figures"
SHIPPED = sorted(p for p in FIGURES.rglob("*.json") if is_run(p))
MORE = Path(os.environ["MIMBENCH_PARITY"]) if "MIMBENCH_PARITY" in os.environ else None


def _more() -> list[Path]:
    if MORE is None:
        return []
    return sorted(p for p in MORE.rglob("*") if p.suffix in {".pt", ".json"} and p.is_file() and is_run(p))


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem.removeprefix('golden_')}{path.suffix}"


def _repeat(run: Official, dtype: torch.dtype) -> tuple[Method, dict[str, str], Losses]:
    """Our method with the record's weights, its names' official counterparts, its losses."""
    adapter = ADAPTERS[run.method]
    method = adapter.build(run.config).double().train()
    names = adapter.load(method, run)
    method.to(dtype)
    inputs, draws = each([run.inputs, run.draws], lambda t: t.to(dtype) if t.is_floating_point() else t)
    official = Official(**{**vars(run), "inputs": inputs, "draws": draws})
    return method, names, adapter.losses(method, official)


def _gradient_norms(method: Method, names: dict[str, str], losses: Losses) -> dict[str, float]:
    """Norms of the gradients of a loss, by official names, of every parameter that gets one."""
    method.zero_grad()
    losses.total.backward()
    return {
        names[ours]: parameter.grad.norm().item()
        for ours, parameter in method.named_parameters()
        if parameter.grad is not None
    }


def _assert_parity(path: Path) -> None:
    run = read(path)
    adapter = ADAPTERS[run.method]
    if reason := adapter.unsupported(run.config):
        pytest.skip(reason)
    method, names, losses = _repeat(run, torch.float64)
    assert losses.total.item() == pytest.approx(run.loss, rel=0, abs=run.tolerance)
    for ours, theirs in adapter.parts.items():
        assert losses[ours].item() == pytest.approx(run.loss_parts[theirs], rel=0, abs=run.tolerance_rest)
    adapter.check(method, run)

    norms = _gradient_norms(method, names, losses)
    official = {k: v for k, v in run.grad_norm.items() if not adapter.has_no_use_for(k, run.config)}
    assert norms.keys() == official.keys()
    # Some gradients vanish, so that rounding is all there is of them: hence the absolute part. In float32
    # it is a rounding of all the others.
    rounding = 1e-10 if run.tolerance < 2e-6 else 1e-7 * math.hypot(*official.values())
    assert norms == pytest.approx(official, rel=10 * run.tolerance_rest, abs=rounding)

    _, _, single = _repeat(run, torch.float32)
    assert single.total.item() == pytest.approx(run.loss_float32, rel=0, abs=adapter.rounding)


@pytest.mark.parametrize("path", SHIPPED, ids=_name)
def test_loss_and_gradients_are_the_official_ones(path: Path) -> None:
    _assert_parity(path)


@pytest.mark.parametrize("path", [p for p in _more() if p.parent.name in ADAPTERS], ids=_name)
def test_loss_and_gradients_are_the_official_ones_in_more_records(path: Path) -> None:
    _assert_parity(path)


def test_records_of_methods_without_an_adapter_are_named() -> None:
    if MORE is None:
        pytest.skip("MIMBENCH_PARITY names no folder of further records")
    assert MORE.is_dir(), f"MIMBENCH_PARITY names {MORE}, which is not a folder"
    assert any(p.parent.name in ADAPTERS for p in _more()), f"{MORE} holds no record of a known method"
    left = Counter(p.parent.name for p in _more() if p.parent.name not in ADAPTERS)
    if left:
        named = ", ".join(f"{name} ({count})" for name, count in sorted(left.items()))
        pytest.skip(f"{left.total()} records of {len(left)} methods have no adapter: {named}")


def test_a_card_that_claims_parity_has_figures_to_show() -> None:
    claimed = {key for key, cls in registry.methods().items() if cls.card.parity == "verified"}
    claimed = {key for key in claimed if registry.find_method(key).__module__.startswith("method_zoo.")}
    assert claimed <= {path.parent.name for path in FIGURES.rglob("*.json")}
    # A method that differs from another only in its masks may show masks alone, which tests/zoo reads.
    assert claimed & {path.parent.name for path in SHIPPED} <= ADAPTERS.keys()


def test_formula_gives_the_published_numbers() -> None:
    assert formula.fnv1a64("model/cls_token") == 0x3582054C87F8021F
    first = [-0.81494140625, -0.425048828125, -0.071533203125, -0.66845703125]
    assert formula.fill("model/cls_token", (4,)).tolist() == first
    image = [[-0.66650390625, 0.2369384765625, -0.2296142578125]]
    image += [[0.0110626220703125, -0.578125, -0.40673828125]]
    assert formula.fill("input/img", (2, 3)).tolist() == image
    assert formula.fill("model/cls_token", (1000,)).sum().item() == pytest.approx(
        -13.534254789352417, abs=1e-12
    )


def _wrong_eps(method: Method) -> None:
    for module in method.modules():
        if isinstance(module, nn.LayerNorm | nn.RMSNorm):
            module.eps = 1e-6 if module.eps == 1e-5 else 1e-5


def _tanh_gelu(method: Method) -> None:
    for module in method.modules():
        if isinstance(module, nn.GELU):
            module.approximate = "tanh"


@pytest.mark.parametrize("mistake", [_wrong_eps, _tanh_gelu])
@pytest.mark.parametrize("path", SHIPPED, ids=_name)
def test_a_wrong_eps_or_activation_would_be_noticed(path: Path, mistake) -> None:
    """The loss or a gradient would miss its tolerance by far."""
    run = read(path)
    method, names, losses = _repeat(run, torch.float64)
    norms = _gradient_norms(method, names, losses)
    mistake(method)
    wrong = ADAPTERS[run.method].losses(method, run)
    moved = abs(wrong.total - losses.total).item() / run.tolerance
    for name, norm in _gradient_norms(method, names, wrong).items():
        moved = max(moved, abs(norm - norms[name]) / (10 * run.tolerance_rest * norms[name] + 1e-10))
    # Float32 hides more: there the mistake stands out of the tolerance, not far out of it.
    assert moved > (100 if run.tolerance < 1e-6 else 1)


def test_a_wrong_patch_order_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    run = read(FIGURES / "mae" / "normpix_s20.json")
    monkeypatch.setattr(
        method_zoo.parts.losses, "patchify", lambda images, size: patchify(images, size, order="channel")
    )
    _, _, losses = _repeat(run, torch.float64)
    assert abs(losses.total.item() - run.loss) > 1e-3
