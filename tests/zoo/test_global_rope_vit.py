"""CAPI's global vector: as the official code forms it, at any size, and no attention that is not its own."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from method_zoo.backbones import build
from mimbench.encoder import Encoder
from mimbench.errors import UserError
from mimbench.spec import Readout
from tests.weights.proof import convert_proof
from tests.weights.proofs.capi import PATCH, SIDE, forward, random_state, whole_images

OFFICIAL = Readout(token="cls", norm="raw")


@pytest.fixture
def encoder(tmp_path: Any) -> Encoder:
    made = convert_proof(whole_images(True), tmp_path)
    made.backbone.double()
    return made


def pictures(side: int) -> torch.Tensor:
    return torch.rand(2, 3, side * PATCH, side * PATCH, dtype=torch.float64)


@pytest.mark.parametrize("side", [SIDE, 3, 8])
def test_the_readout_is_the_official_global_vector_at_any_size(encoder: Encoder, side: int) -> None:
    shown, images = encoder.resized(side * PATCH), pictures(side)
    shown.backbone.double()
    vector, features = forward(random_state(), (images - shown.mean) / shown.std)
    found = shown.readouts(images, [OFFICIAL])[OFFICIAL]
    torch.testing.assert_close(found, vector, rtol=0, atol=2e-5)
    torch.testing.assert_close(shown(images).patches.flatten(1, 2), features, rtol=0, atol=2e-5)
    final = shown.readouts(images, [Readout(token="cls")])[Readout(token="cls")]
    assert torch.equal(final, shown(images).cls)
    torch.testing.assert_close(torch.cosine_similarity(final, vector), torch.ones(2).double())


def test_every_layer_has_a_class_token_of_its_own(encoder: Encoder) -> None:
    last, first = encoder.tokens(pictures(SIDE), (-1, -3), norm="raw")
    assert last.cls is not None
    assert first.cls is not None
    assert not torch.allclose(last.cls, first.cls)


def test_a_backbone_with_it_comes_back_from_its_config(encoder: Encoder) -> None:
    copy, x = encoder.backbone.rebuilt(image_size=4 * PATCH, drop_path=0.1).eval(), pictures(4)
    again = build(**json.loads(json.dumps(copy.config))).double().eval()
    again.load_state_dict(copy.state_dict(), strict=True)
    assert torch.equal(again.encode(x).cls, copy.encode(x).cls)
    copy.train().encode(x, keys=torch.tensor([1, 2])).cls.square().sum().backward()
    untouched = [name for name, p in copy.named_parameters() if p.grad is None or not p.grad.any()]
    assert untouched == []
    assert {"summary_token", "register_tokens"} <= copy.no_weight_decay()


def test_attention_is_refused_rather_than_a_register_s_shown(encoder: Encoder) -> None:
    assert encoder.has_cls
    with pytest.raises(UserError, match="no attention of it"):
        encoder.attentions(pictures(SIDE))
