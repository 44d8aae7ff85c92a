"""Gaussian diffusion: how much of an image is left after t steps, and how a network is told t."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from method_zoo.backbones.initial import xavier_

NoiseSchedule = Literal["linear", "cosine"]


def signal_shares(schedule: NoiseSchedule, steps: int, rho: float = 1.0) -> Tensor:
    """How much of the signal's variance is left after 1, ..., ``steps`` steps: ᾱ_t^rho, float64 [steps].

    "linear": variances β_t grow from 1e-4 to 0.02 over 1,000 steps (Ho et al. 2020, arXiv:2006.11239), in
    proportion more over fewer; "cosine": ᾱ_t is a squared cosine (Nichol & Dhariwal 2021,
    arXiv:2102.09672). A ``rho`` below 1 makes less noise, one above 1 more (Wei et al. 2023,
    arXiv:2304.03283).
    """
    if schedule == "linear":
        betas = torch.linspace(1e-4, 0.02, steps, dtype=torch.float64) * 1000 / steps
        shares = torch.cumprod(1 - betas.clamp(max=0.999), dim=0)
    else:
        time = torch.arange(steps + 1, dtype=torch.float64) / steps
        wave = torch.cos((time + 0.008) / 1.008 * math.pi / 2).square()
        shares = torch.cumprod((wave[1:] / wave[:-1]).clamp(min=0.001), dim=0)
    return shares**rho


def diffuse(x: Tensor, noise: Tensor, share: Tensor) -> Tensor:
    """√share · x + √(1 - share) · noise, for x and standard normal noise of one shape [B, ...] and a share of
    the signal for each row, [B]."""
    share = share.to(x.dtype).view(-1, *[1] * (x.ndim - 1))
    return share.sqrt() * x + (1 - share).sqrt() * noise


class TimeEmbedding(nn.Module):
    """A time as a vector: sines and cosines of it, then two linear layers (arXiv:2006.11239)."""

    def __init__(self, dim: int):
        super().__init__()
        half = dim // 2
        frequencies = 10000.0 ** -(torch.arange(half, dtype=torch.float64) / half)
        self.register_buffer("frequencies", frequencies.float(), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(2 * half, dim), nn.SiLU(), nn.Linear(dim, dim))
        xavier_(self)

    def forward(self, time: Tensor) -> Tensor:
        """[B, dim]. time: number of the step, [B]."""
        angles = time.to(self.frequencies.dtype).unsqueeze(1) * self.frequencies
        return self.mlp(torch.cat([angles.sin(), angles.cos()], dim=1))
