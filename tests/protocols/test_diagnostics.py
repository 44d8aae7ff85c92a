"""What is said of an encoder without labels is what the papers define, and what is wrong with it is said."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from protocol_toys import ToyBackbone, ToyDataset, around
from scipy.spatial.distance import pdist
from torch import nn

import mimbench.torchvision_compat  # noqa: F401
from method_zoo.backbones.timm_vit import TimmViT
from mimbench.encoder import Encoder
from mimbench.geometry import effective_rank, linear_cka
from mimbench.registry import build_backbone
from mimbench.spec import Readout
from protocols.diagnostics import Diagnostics
from protocols.parts.geometry import attention_distance, uniformity


def features(count: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.logspace(0, -3, width)
    return torch.randn(count, width, generator=generator) * scale + 2


@pytest.mark.parametrize("shape", [(50, 12), (12, 50)])
def test_rankme_is_the_papers_formula(shape):
    x = features(*shape)
    values = np.linalg.svd(x.double().numpy(), compute_uv=False)
    shares = values / np.abs(values).sum() + 1e-7
    assert effective_rank(x) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-6)


def test_rankme_counts_directions():
    orthogonal = torch.eye(10).repeat(3, 1)
    assert effective_rank(orthogonal) == pytest.approx(10, rel=1e-4)
    assert effective_rank(torch.ones(30, 10)) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("block", [7, 1000])
def test_uniformity_is_the_papers_formula(block):
    unit = nn.functional.normalize(features(40, 6).double(), dim=1)
    expected = np.log(np.exp(-2 * pdist(unit.numpy(), "sqeuclidean")).mean())
    assert uniformity(unit, block) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("shapes", [(60, 5, 9), (6, 20, 9)])
def test_cka_is_the_kernels_definition_and_blind_to_turns_and_scale(shapes):
    count, first, second = shapes
    x, y = features(count, first).double(), features(count, second, seed=1).double()
    centre = np.eye(count) - 1 / count
    kernels = [centre @ (z @ z.T).numpy() @ centre for z in (x, y)]
    hsic = [np.trace(a @ b) for a, b in [(0, 1), (0, 0), (1, 1)] for a, b in [(kernels[a], kernels[b])]]
    assert linear_cka(x, y) == pytest.approx(hsic[0] / np.sqrt(hsic[1] * hsic[2]), rel=1e-9)
    turn = torch.linalg.qr(torch.randn(first, first, dtype=torch.float64))[0]
    assert linear_cka(x, 3 * (x @ turn) + 5) == pytest.approx(1, rel=1e-9)
    assert linear_cka(x, torch.ones(count, 3)) == 0


def test_attention_distance_by_brute_force_and_without_class_token():
    grid, patch = (2, 3), 16
    places = [(r, c) for r in range(2) for c in range(3)]
    raw = torch.rand(1, 2, 7, 7, generator=torch.Generator().manual_seed(0))
    probabilities = raw / raw.sum(-1, keepdim=True)
    found = attention_distance(probabilities, grid, patch)
    for head in range(2):
        among = probabilities[0, head, 1:, 1:].numpy()
        expected = np.mean([
            sum(
                among[i, j] / among[i].sum() * patch * np.hypot(a[0] - b[0], a[1] - b[1])
                for j, b in enumerate(places)
            )
            for i, a in enumerate(places)
        ])  # fmt: skip
        assert float(found[0, head]) == pytest.approx(expected, rel=1e-5)
    assert float(attention_distance(torch.eye(6)[None, None], grid, patch)) == 0


def evaluate(backbone: nn.Module, folder, **options):
    encoder = Encoder(backbone, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))
    return Diagnostics(**options).evaluate(encoder, ToyDataset(), around(folder))


def test_variance_is_one_less_the_mean_cosine(tmp_path):
    found = evaluate(ToyBackbone(), tmp_path)
    data = ToyDataset()
    images = torch.from_numpy(data.test.images).permute(0, 3, 1, 2)
    encoder = Encoder(ToyBackbone(), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))
    readout = Readout()
    x = nn.functional.normalize(encoder.readouts(images, [readout])[readout].double(), dim=1)
    assert found.metrics["variance"] == pytest.approx(1 - float((x @ x.T).mean()), rel=1e-5)
    assert found.outcomes.score == pytest.approx(found.metrics["variance"])
    assert found.facts["flags"] == []


class Collapsed(ToyBackbone):
    """All images end up in nearly the same place."""

    def encode(self, *args, **kwargs):
        out = super().encode(*args, **kwargs)
        return out._replace(layers=tuple((1 + 1e-4 * c, 1 + 1e-4 * p) for c, p in out.layers))

    def final_norm(self, tokens):
        return tokens


class Flat(ToyBackbone):
    """Everything that is said of an image is said along one direction."""

    def encode(self, *args, **kwargs):
        out = super().encode(*args, **kwargs)
        direction = torch.linspace(-1, 1, self.embed_dim)
        layers = tuple((1 + c[:, :1] * direction, 1 + p[..., :1] * direction) for c, p in out.layers)
        return out._replace(layers=layers)

    def final_norm(self, tokens):
        return tokens


class Leaky(ToyBackbone):
    """What is hidden is still seen in the mean of all."""

    def encode(self, images, mask=None, **kwargs):
        out = super().encode(images, mask, **kwargs)
        return out._replace(patches=out.patches + images.mean((1, 2, 3)).view(-1, 1, 1))


def test_collapse_is_said_in_words(tmp_path):
    found = evaluate(Collapsed(), tmp_path / "collapsed")
    assert found.facts["flags"][0].startswith("collapse: the features of all images are nearly the same")
    found = evaluate(Flat(), tmp_path / "flat")
    assert found.facts["flags"][0].startswith("dimensional collapse")


def test_hidden_patches_that_are_seen_are_said_in_words(tmp_path):
    assert evaluate(ToyBackbone(), tmp_path).metrics["leak"] == 0
    found = evaluate(Leaky(), tmp_path / "leaky")
    assert found.metrics["leak"] > 0.001
    assert "mask leakage" in found.facts["flags"][0]


@pytest.mark.parametrize("name", ["vit_micro_patch2", "timm:vit_tiny_patch16_224"])
def test_transformers_say_how_far_each_layer_looks(tmp_path, name):
    size = 8 if name.startswith("vit") else 32
    make = TimmViT if name.startswith("timm:") else build_backbone
    backbone = make(name=name, image_size=size)
    data = ToyDataset()
    encoder = Encoder(backbone, mean=(0.5,) * 3, std=(0.5,) * 3)
    found = Diagnostics(images=16).evaluate(encoder, data, around(tmp_path))
    distances = found.facts["attention_distance_pixels"]
    assert len(distances) == backbone.depth
    # near its start a transformer looks everywhere alike
    rows, columns = np.indices(backbone.grid).reshape(2, -1) * backbone.patch_size
    even = np.hypot(rows[:, None] - rows, columns[:, None] - columns).mean()
    assert distances == pytest.approx([even] * len(distances), rel=0.2)
    assert ("leak" in found.metrics) == encoder.takes_mask
    assert found.metrics.get("leak", 0) < 1e-5
    cka = np.array(found.facts["cka_layers"])
    np.testing.assert_allclose(np.diag(cka), 1, atol=1e-4)
    np.testing.assert_allclose(cka, cka.T)
