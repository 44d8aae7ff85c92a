"""Vector quantisation and the convolutional autoencoder around it (VQ-VAE)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Quantised(NamedTuple):
    """A batch of vectors and the codes they were replaced by."""

    codes: Tensor  # [n, D] float32, with the gradient passed straight to the vectors
    ids: Tensor  # [n] int64
    commitment: Tensor  # scalar: mean squared distance, which pulls the vectors to their codes


class Codebook(nn.Module):
    """``size`` codes of ``dim`` numbers, learnt as moving averages of the vectors they stand for.

    The codes follow van den Oord et al. (2017, arXiv:1711.00937), appendix A.1: with n_i vectors z
    nearest to code i in a step, N_i <- γ·N_i + (1 - γ)·n_i, m_i <- γ·m_i + (1 - γ)·Σz, e_i = m_i / N_i.
    A code that was nearest to nothing for ``patience`` steps moves onto a vector of the last batch, drawn
    in proportion to its squared distance from its code (as k-means++ draws centres, which goes where
    codes are missing). All codes start that way. Without, a codebook lives off a few codes: after ten
    epochs of 16-pixel digits 13 % of 512 were in use, instead of all.

    Vectors are counted while the module trains, over all micro-batches of a step and all processes, and
    the codes move in ``update``, once an optimiser step. Quantisation is float32 under any autocast.
    """

    def __init__(self, size: int, dim: int, decay: float = 0.99, patience: int = 16):
        super().__init__()
        self.size, self.dim, self.decay, self.patience = size, dim, decay, patience
        self.register_buffer("codes", torch.randn(size, dim) / math.sqrt(dim))
        self.register_buffer("counts", torch.zeros(size))  # N
        self.register_buffer("sums", torch.zeros(size, dim))  # m
        self.register_buffer("idle", torch.full((size,), patience))  # steps since the code was last nearest
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        # Of the running step only; empty between steps, so not part of the state. Not buffers either:
        # DistributedDataParallel would overwrite them with the first process's.
        self._seen: list[tuple[Tensor, Tensor]] = []
        self._candidates: list[tuple[Tensor, Tensor]] = []

    def nearest(self, vectors: Tensor) -> Tensor:
        """Ids of the nearest codes, int64 [n]. vectors: [n, D]."""
        # |z - e|² = |z|² + 2(|e|²/2 - z·e), and |z|² does not change which code is nearest
        return torch.addmm(self.codes.square().sum(1) / 2, vectors, self.codes.T, alpha=-1).argmin(1)

    def forward(self, vectors: Tensor, scores: Tensor | None = None) -> Quantised:
        """Replace each vector [n, D] by its nearest code.

        scores: uniform in [0, 1), [n]; what decides which vectors idle codes may move to.
        """
        with torch.autocast(vectors.device.type, enabled=False):
            vectors = vectors.float()
            ids = self.nearest(vectors.detach())
            codes = self.codes[ids]
            distance = (vectors - codes).square()
            if self.training and scores is not None:
                self._count(vectors.detach(), ids, distance.detach().sum(1), scores)
            return Quantised(vectors + (codes - vectors).detach(), ids, distance.mean())

    def _count(self, vectors: Tensor, ids: Tensor, distance: Tensor, scores: Tensor) -> None:
        counts = torch.zeros_like(self.counts).index_add_(0, ids, torch.ones_like(distance))
        sums = torch.zeros_like(self.sums).index_add_(0, ids, vectors)
        self._seen.append((counts, sums))
        # Weighted sampling without replacement (Efraimidis & Spirakis 2006): the largest of u^(1/w).
        order = scores.clamp_min(2.0**-25).log() / distance.clamp_min(1e-12)
        best = order.topk(min(self.size, len(order)))
        self._candidates.append((best.values, vectors[best.indices]))

    def perplexity(self) -> float:
        """exp of the entropy of how often the codes are used, in [1, size]."""
        shares = self.counts.double() / self.counts.sum().clamp_min(1e-12)
        return float(torch.special.entr(shares).sum().exp())

    @torch.no_grad()
    def update(self) -> None:
        """Move the codes by what the step saw; does nothing where it saw nothing."""
        if not self._seen:
            return
        counts, sums = (torch.stack(parts).sum(0) for parts in zip(*self._seen, strict=True))
        order, vectors = (torch.cat(parts) for parts in zip(*self._candidates, strict=True))
        self._seen, self._candidates = [], []
        counts, sums, order, vectors = self._over_processes(counts, sums, order, vectors)

        # The published decay suits 250,000 steps; the average is young at first and must not lag.
        decay = min(self.decay, (1 + int(self.steps)) / (10 + int(self.steps)))
        self.steps += 1
        self.counts.mul_(decay).add_(counts, alpha=1 - decay)
        self.sums.mul_(decay).add_(sums, alpha=1 - decay)
        used = counts > 0
        self.idle.add_(1)[used] = 0
        self._follow(counts, sums, decay)

        idle = (self.idle >= self.patience).nonzero()[:, 0]
        moved = idle[: len(vectors)]
        chosen = vectors[order.topk(len(moved)).indices]
        share = counts.sum() / self.size
        self.codes[moved], self.counts[moved], self.sums[moved] = chosen, share, chosen * share
        self.idle[moved] = 0

    def _follow(self, counts: Tensor, sums: Tensor, decay: float) -> None:
        """Move the codes that vectors were nearest to. counts: [size], sums: [size, D], of this step."""
        alive = self.counts > 0
        self.codes[alive] = self.sums[alive] / self.counts[alive, None]

    def _over_processes(
        self, counts: Tensor, sums: Tensor, order: Tensor, vectors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same of all processes together."""
        distributed = torch.distributed
        if not (distributed.is_available() and distributed.is_initialized()):
            return counts, sums, order, vectors
        distributed.all_reduce(counts)
        distributed.all_reduce(sums)
        # Gathering takes equal shapes: fill up with candidates that rank below every real one.
        best = order.topk(min(self.size, len(order)))
        fill = self.size - len(best.values)
        offers = torch.cat([best.values[:, None], vectors[best.indices]], dim=1)
        offers = F.pad(offers, (0, 0, 0, fill), value=-torch.inf)
        gathered = [torch.empty_like(offers) for _ in range(distributed.get_world_size())]
        distributed.all_gather(gathered, offers)
        offers = torch.cat(gathered)
        offers = offers[offers[:, 0] > -torch.inf]
        return counts, sums, offers[:, 0], offers[:, 1:]


class SphericalCodebook(Codebook):
    """A codebook on the unit sphere: vectors and codes have length 1, the nearest is the most similar.

    The codes follow BEiT v2's code (arXiv:2208.06366; microsoft/unilm, beit2): with m the mean of the
    vectors nearest to code e in a step, e <- norm(γ·e + (1 - γ)·norm(m)), norm(x) = x / |x|.
    """

    def __init__(self, size: int, dim: int, decay: float = 0.99, patience: int = 16):
        super().__init__(size, dim, decay, patience)
        self.codes.copy_(F.normalize(self.codes, dim=1))

    def nearest(self, vectors: Tensor) -> Tensor:
        """Ids of the most similar codes, int64 [n]. vectors: [n, D], of any length."""
        return (vectors @ self.codes.T).argmax(1)

    def forward(self, vectors: Tensor, scores: Tensor | None = None) -> Quantised:
        """Replace each vector [n, D] by its nearest code; see ``Codebook``."""
        return super().forward(F.normalize(vectors.float(), dim=1), scores)

    def _follow(self, counts: Tensor, sums: Tensor, decay: float) -> None:
        used = counts > 0
        means = F.normalize(sums[used], dim=1)
        self.codes[used] = F.normalize(decay * self.codes[used] + (1 - decay) * means, dim=1)


class Residual(nn.Module):
    """x + Conv1x1(ReLU(Conv3x3(ReLU(x)))), as in the paper's section 4.1."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.spatial = nn.Conv2d(width, inner, 3, padding=1)
        self.mix = nn.Conv2d(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(F.relu(self.spatial(F.relu(x))))


def strides(patch_size: int) -> list[int]:
    """Strides that lead from pixels to one vector a patch: 2 -> [2], 8 -> [4, 2], 14 -> [7, 2].

    Steps of two as published; what is odd in the patch size goes first and at once, and patches of 8
    pixels or more begin with a step of four, without which most of the time goes into full-size maps.
    """
    twos = (patch_size & -patch_size).bit_length() - 1
    odd = patch_size >> twos
    found = [2] * twos if twos < 3 else [4] + [2] * (twos - 2)
    return [odd, *found] if odd > 1 or not found else found


def _down(inputs: int, outputs: int, stride: int) -> nn.Module:
    # 4x4 at stride 2 as published, so that neighbouring tokens overlap; other strides cut cleanly
    if stride == 2:
        return nn.Conv2d(inputs, outputs, 4, stride=2, padding=1)
    return nn.Conv2d(inputs, outputs, stride, stride=stride)


def _up(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 2:
        return nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)
    return nn.ConvTranspose2d(inputs, outputs, stride, stride=stride)


def conv_encoder(patch_size: int, width: int, blocks: int, dim: int) -> nn.Sequential:
    """Images [B, 3, H·P, W·P] -> vectors [B, dim, H, W]: one convolution a stride."""
    layers: list[nn.Module] = []
    channels = 3
    for stride in strides(patch_size):
        layers += [_down(channels, width, stride), nn.ReLU()]
        channels = width
    layers += [nn.Conv2d(channels, width, 3, padding=1)]
    layers += [Residual(width, width // 2) for _ in range(blocks)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(width, dim, 1))


def conv_decoder(patch_size: int, width: int, blocks: int, dim: int) -> nn.Sequential:
    """Codes [B, dim, H, W] -> images [B, 3, H·P, W·P]: the encoder's mirror."""
    layers: list[nn.Module] = [nn.Conv2d(dim, width, 3, padding=1)]
    layers += [Residual(width, width // 2) for _ in range(blocks)]
    layers += [nn.ReLU()]
    *inner, last = reversed(strides(patch_size))
    for stride in inner:
        layers += [_up(width, width, stride), nn.ReLU()]
    return nn.Sequential(*layers, _up(width, 3, last))
