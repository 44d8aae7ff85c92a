"""The forward process of diffusion against the chain of steps it stands for, and what DiffMAE makes of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from method_zoo.parts.diffusion import TimeEmbedding, diffuse, signal_shares
from mimbench import rng

from .build import batch, build


@pytest.mark.parametrize("rho", [1.0, 0.8, 1.5])
def test_the_linear_schedule_is_the_product_of_its_steps(rho: float) -> None:
    """Mean and variance after t steps of x -> √(1-β)x + √β·noise, one at a time, are the closed form's."""
    shares = signal_shares("linear", 1000, rho)
    factor, variance = 1.0, 0.0
    for t in range(1000):
        beta = 1e-4 + (0.02 - 1e-4) * t / 999
        kept = (1 - beta) ** rho  # a power of the product is the product of powers
        factor, variance = factor * kept**0.5, variance * kept + 1 - kept
        assert shares[t].item() == pytest.approx(factor**2, rel=1e-9)
        assert 1 - shares[t].item() == pytest.approx(variance, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("steps", [1000, 50])
def test_the_cosine_schedule_is_a_squared_cosine(steps: int) -> None:
    shares = signal_shares("cosine", steps)
    time = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    expected = torch.cos((time + 0.008) / 1.008 * torch.pi / 2).square()
    expected /= torch.cos(torch.tensor(0.008 / 1.008 * torch.pi / 2, dtype=torch.float64)).square()
    assert torch.allclose(shares[:-1], expected[:-1], rtol=1e-9, atol=0)
    assert shares[-1] == pytest.approx(0.001 * shares[-2].item())  # β is at most 0.999


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_noise_grows_with_time_and_with_rho(schedule: Any) -> None:
    shares = {rho: signal_shares(schedule, 1000, rho) for rho in (0.6, 1.0, 1.4)}
    for share in shares.values():
        assert (share.diff() < 0).all()
        assert share[0] > 0.99
        assert share[-1] < 0.01
    assert (shares[0.6] > shares[1.0]).all()
    assert (shares[1.0] > shares[1.4]).all()


def test_fewer_steps_end_in_as_much_noise() -> None:
    many, few = signal_shares("linear", 1000).log(), signal_shares("linear", 100).log()
    assert few[-1].item() == pytest.approx(many[-1].item(), rel=0.1)


def test_what_is_diffused_has_the_mean_and_variance_of_its_time() -> None:
    keys = torch.from_numpy(rng.sample_keys(0, 0, torch.arange(4).numpy()))
    noise = rng.normal(keys, 60_000, "noise").double()
    share = torch.tensor([1.0, 0.9, 0.3, 0.0], dtype=torch.float64)
    noised = diffuse(torch.full_like(noise, 2.0), noise, share)
    torch.testing.assert_close(noised.mean(1), 2 * share.sqrt(), rtol=0, atol=0.02)
    torch.testing.assert_close(noised.var(1), 1 - share, rtol=0.03, atol=1e-9)


def test_no_two_times_look_alike() -> None:
    torch.manual_seed(0)
    vectors = TimeEmbedding(32)(torch.arange(1, 1001))
    assert torch.cdist(vectors, vectors).add(torch.eye(1000) * 9).min() > 1e-3


def diffused(**given: Any) -> tuple[list[Tensor], list[Tensor]]:
    """The times and the noise that a DiffMAE draws for 200 digits."""
    method, times, noises = build("diffmae", **given), [], []
    losses = method.losses
    method.losses = lambda images, mask, time, noise, keys: (  # type: ignore[method-assign]
        times.append(time) or noises.append(noise) or losses(images, mask, time, noise, keys)
    )
    method(*batch(method, n=200))
    return times, noises


def test_every_time_is_drawn_alike_often() -> None:
    (time,), (noise,) = diffused(timesteps=4)
    assert time.bincount(minlength=4).min() > 25
    assert int(time.max()) == 3
    assert abs(float(noise.mean())) < 0.01
    assert abs(float(noise.std()) - 1) < 0.01
    assert not torch.equal(noise[0], noise[1])


def test_without_noise_the_target_is_there_to_be_copied() -> None:
    """At time 0 the decoder's input is nearly the target, at the last time it holds nothing of it."""
    method = build("diffmae")
    images, step = batch(method, n=4)
    mask = method.masking(step.keys, (4, 4))
    method.embed.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    target_last = []
    for time in (0, 999):
        seen: list[Tensor] = []
        method.losses(images, mask, torch.full((4,), time), torch.zeros(4, 12, 48))
        target_last.append(seen[0])
    assert target_last[0].norm() > 50 * target_last[1].norm()
    clean = images.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 4, 5, 1).reshape(4, 16, 48)
    torch.testing.assert_close(target_last[0], clean[mask].view(4, 12, 48), rtol=1e-3, atol=1e-3)


def test_decoder_blocks_look_at_the_encoder_from_its_last_block_to_its_first() -> None:
    assert build("diffmae", decoder_depth=2).layers == (-1, -2)
    assert build("diffmae", decoder_depth=1).layers == (-1,)
    assert build("diffmae", decoder_depth=4).layers == (-1, -1, -2, -2)
