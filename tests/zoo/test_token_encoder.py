"""Encoders that read tokens: what is hidden stays hidden, and what is drawn belongs to the sample."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from method_zoo.backbones.blocks import make_block
from method_zoo.backbones.dropout import dropout, run_dropping_block
from method_zoo.parts.masking import VaryingMask
from method_zoo.parts.tokenizers import build_tokenizer, describe
from method_zoo.parts.tokenizers.dalle import DalleEncoder
from mimbench import rng
from mimbench.errors import UserError
from mimbench.method import Method

from .build import batch, build, digits

KEYS = torch.arange(20_000)


def mage() -> Method:
    return build("mage").eval()


def some_mask(n: int, hidden: int = 10) -> Tensor:
    return rng.uniform(torch.arange(n), 16, "test").argsort(1) < hidden


# The encoder ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fill", ["drop", "token"])
def test_a_hidden_token_does_not_leak_into_the_encoder(fill: str) -> None:
    encoder, (images, _) = mage().encoder, digits(0, 4)
    ids, mask = encoder.token_ids(images), some_mask(4)
    others = torch.where(mask, (ids + 1) % encoder.vocabulary, ids)
    kind = {"dropped": mask} if fill == "drop" else {"dropped": None}
    found = [encoder.encode_ids(i, mask, **kind) for i in (ids, others)]
    for a, b in zip(found[0][:2], found[1][:2], strict=True):
        assert torch.equal(a, b)
    as_images = encoder.encode(images, mask, fill=fill)
    torch.testing.assert_close(as_images.patches, found[0].patches)
    assert as_images.patches.shape[1] == (6 if fill == "drop" else 16)


def test_the_position_of_a_visible_token_survives_dropping() -> None:
    """Dropping is leaving out: what is kept enters the blocks as it would among all tokens."""
    encoder, (images, _) = mage().encoder, digits(0, 4)
    mask = some_mask(4)
    everything = encoder.encode(images, layers=(-encoder.depth - 1,)).layers[0][1]
    kept = encoder.encode(images, mask, layers=(-encoder.depth - 1,))
    rows = torch.arange(4).unsqueeze(1)
    assert torch.equal(kept.layers[0][1], everything[rows, kept.kept])


def test_the_decoder_is_told_nothing_of_hidden_tokens() -> None:
    method = mage()
    images, step = batch(method)
    ids = method.encoder.token_ids(images)
    mask = method.masking(step.keys, (4, 4))
    others = torch.where(mask.hidden, (ids + 1) % method.encoder.vocabulary, ids)
    predicted = [
        method._predict(method.encoder.encode_ids(i, mask.hidden, mask.dropped), mask.hidden, None)
        for i in (ids, others)
    ]
    assert torch.equal(*predicted)


def test_a_token_encoder_brings_its_tokenizer_along() -> None:
    encoder, (images, _) = mage().encoder, digits(0, 4)
    again = type(encoder)(**{**encoder.config, "patch_size": encoder.patch_size}).eval()
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(again.encode(images).patches, encoder.encode(images).patches)
    assert not any(p.requires_grad for p in again.tokenizer.parameters())
    assert not again.train().tokenizer.training


def test_a_description_rebuilds_each_kind_of_tokenizer() -> None:
    small = DalleEncoder(vocabulary=11, width=4, blocks=1)
    for tokenizer in (small, build("vqvae"), build("vqkd")):
        again = build_tokenizer(describe(tokenizer))
        assert again.vocabulary == tokenizer.vocabulary
        again.load_state_dict(tokenizer.state_dict())
    with pytest.raises(UserError, match="mae is no tokenizer"):
        build_tokenizer({"method": "mae", "config": {}})
    with pytest.raises(TypeError, match="how it was built"):
        describe(object())


# The mask ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mean", "std", "low", "high"), [(0.55, 0.25, 0.5, 1.0), (0.3, 0.1, 0.35, 0.8)])
def test_shares_of_hidden_tokens_follow_the_truncated_normal_distribution(mean, std, low, high) -> None:
    shares = VaryingMask(mean, std, low, high).shares(KEYS).numpy()
    expected = stats.truncnorm((low - mean) / std, (high - mean) / std, loc=mean, scale=std)
    assert stats.kstest(shares, expected.cdf).pvalue > 1e-3


def test_a_varying_mask_hides_as_many_as_its_share_and_drops_some_of_them() -> None:
    masking = VaryingMask()
    hidden, dropped = masking(KEYS[:2000], (8, 8))
    assert torch.equal(hidden.sum(1), (64 * masking.shares(KEYS[:2000])).ceil().long())
    assert (dropped.sum(1) == 32).all()
    assert not (dropped & ~hidden).any()
    assert len(hidden.sum(1).unique()) > 10
    alone = masking(KEYS[7:8], (8, 8))
    assert torch.equal(alone.hidden[0], hidden[7])
    share_of_each_place = hidden.double().mean(0)
    expected = hidden.double().mean()
    assert (share_of_each_place - expected).abs().max() < 4 * math.sqrt(0.25 / 2000)
    with pytest.raises(UserError, match="leaves"):
        VaryingMask(low=1.0)(KEYS[:2], (4, 4))


# Dropout ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_keeps_the_mean_and_its_rate(rate: float) -> None:
    dropped = dropout(torch.ones(200, 30, 33), rate, torch.arange(200), "test")
    assert dropped.unique().tolist() == pytest.approx([0.0, 1 / (1 - rate)])
    share = (dropped == 0).double().mean()
    assert abs(share - rate) < 4 * math.sqrt(rate * (1 - rate) / dropped.numel()) + 2**-16
    # neither rows nor neighbours know of each other
    zeros = (dropped == 0).double() - rate
    noise = 4 * rate * (1 - rate) / math.sqrt(zeros.numel())
    assert abs((zeros[1:] * zeros[:-1]).mean()) < 1.1 * noise
    assert abs((zeros[..., 1:] * zeros[..., :-1]).mean()) < 1.1 * noise


def test_dropout_hangs_on_the_sample_and_not_on_its_batch() -> None:
    x, keys = torch.randn(6, 5, 7), torch.arange(6)
    whole = dropout(x, 0.3, keys, "test")
    assert torch.equal(whole[2:], dropout(x[2:], 0.3, keys[2:], "test"))
    assert not torch.equal(whole, dropout(x, 0.3, keys, "elsewhere"))
    assert not torch.equal(whole, dropout(x, 0.3, keys + 6, "test"))


def test_a_block_under_dropout_is_the_same_block() -> None:
    """Averaged over draws it nears the block without; a vanishing rate changes nothing."""
    torch.manual_seed(0)
    config = {"embed_dim": 16, "num_heads": 2, "mlp_ratio": 2.0, "qkv_bias": "full", "layer_scale": None}
    block, x = make_block(config).double(), torch.randn(3, 5, 16, dtype=torch.float64)
    expected, keys = block(x), torch.arange(3)
    torch.testing.assert_close(run_dropping_block(block, x, 1e-9, keys, "test"), expected)
    many = run_dropping_block(block, x.repeat(3000, 1, 1), 0.05, torch.arange(9000), "test")
    mean = many.view(3000, 3, 5, 16).mean(0)
    assert (many - expected.repeat(3000, 1, 1)).abs().mean() > 10 * (mean - expected).abs().mean() > 0
