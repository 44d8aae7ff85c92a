"""What is special to pixel methods without a record, against naive references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from method_zoo.deepmim import DeepMIM, supervised_layers
from method_zoo.masksub import MaskSub
from method_zoo.mff import MFF, fused_layers
from method_zoo.mto import MTO, likeness
from method_zoo.parts.patches import where
from method_zoo.pixmim import PixMIM, low_passed
from method_zoo.sup_mim import SupMIM
from mimbench import registry
from mimbench.errors import UserError

from .build import TINY, batch, build, optimiser, train, trained_teacher

DOUBLE = torch.float64


def images(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)


# PixMIM -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width", "radius"), [(16, 16, 3.0), (15, 15, 4.2), (12, 17, 2.5)])
def test_the_low_pass_keeps_the_published_circle(height: int, width: int, radius: float) -> None:
    """The circle as published: drawn around the middle of the spectrum's array after the shift."""
    passed = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            passed[i, j] = (i - (height - 1) / 2) ** 2 + (j - (width - 1) / 2) ** 2 <= radius**2
    x = images(2, 3, height, width)
    shifted = np.fft.fftshift(np.fft.fft2(x.numpy()), axes=(-2, -1))
    expected = np.abs(np.fft.ifft2(np.fft.ifftshift(shifted * passed, axes=(-2, -1))))
    np.testing.assert_allclose(low_passed(x, radius).numpy(), expected, atol=1e-12)


def test_the_target_is_smooth_and_keeps_what_is_smooth() -> None:
    method = build("pixmim")
    assert isinstance(method, PixMIM)
    flat = torch.full((1, 3, 16, 16), 0.3)
    torch.testing.assert_close(method.smoothed(flat), flat, rtol=1e-4, atol=1e-5)
    board = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(8, 8).expand(1, 3, -1, -1)
    assert method.smoothed(board).std((2, 3)).max() < 1e-4


# MFF --------------------------------------------------------------------------------------------------


def test_the_published_blocks_are_fused() -> None:
    assert [12 + layer for layer in fused_layers(12)] == [0, 2, 4, 6, 8, 11]  # mmpretrain, 800 epochs
    assert fused_layers(12, 12) == tuple(range(-12, 0))
    assert fused_layers(2) == (-2, -1)
    assert fused_layers(12, 1) == (-1,)
    with pytest.raises(UserError, match="more blocks"):
        fused_layers(4, 5)


def test_the_decoder_gets_the_weighted_sum_of_projected_blocks() -> None:
    method = build("mff").double()
    assert isinstance(method, MFF)
    with torch.no_grad():
        method.fusion.scores.copy_(torch.tensor([0.3, -0.9], dtype=DOUBLE))
        method.encoder.norm.weight.uniform_(0.5, 2, generator=torch.Generator().manual_seed(1))
    x, _ = batch(method, n=2)
    x = x.double()
    encoded = method.encoder.encode(x, layers=method.layers)
    fused = method.fused(encoded)

    tokens = method.encoder.patch_embed(x)
    tokens = torch.cat([method.encoder.cls_token.expand(2, -1, -1), tokens], 1) + method.encoder.pos_embed
    first = method.encoder.blocks[0](tokens)
    last = method.encoder.blocks[1](first)
    a, b = np.exp([0.3, -0.9]) / np.exp([0.3, -0.9]).sum()
    projection = method.fusion.projections[0]
    expected = a * (first @ projection.weight.T + projection.bias) + b * last
    norm = method.encoder.norm
    expected = F.layer_norm(expected, expected.shape[-1:], norm.weight, norm.bias, norm.eps)
    torch.testing.assert_close(fused.cls, expected[:, 0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(fused.patches, expected[:, 1:], rtol=1e-9, atol=1e-9)


def test_one_level_is_a_plain_masked_autoencoder() -> None:
    method = build("mff", levels=1)
    x, _ = batch(method, n=2)
    encoded = method.encoder.encode(x, layers=method.layers)
    fused = method.fused(encoded)
    torch.testing.assert_close(fused.patches, encoded.patches)
    assert not list(method.fusion.parameters())


# DeepMIM ----------------------------------------------------------------------------------------------


def test_decoders_sit_on_the_published_blocks() -> None:
    assert [12 + 1 + layer for layer in supervised_layers(12, 4)] == [6, 8, 10, 12]
    assert [24 + 1 + layer for layer in supervised_layers(24, 4)] == [12, 16, 20, 24]
    assert supervised_layers(2, 4) == (-2, -1)
    assert supervised_layers(12, 1) == (-1,)


def test_a_teacher_replaces_the_pixels() -> None:
    """With one, every decoder predicts its features, by the cosine, and the teacher stays as it is."""
    plain = build("deepmim")
    teacher = trained_teacher("mae", 4)
    options = {**DeepMIM.card.backbone, **TINY}
    method = DeepMIM(registry.build_backbone("vit_micro_patch4", 16, **options), teacher=teacher)
    x, step = batch(plain)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    losses = train(method, optimiser(method), x, step)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert losses.keys() == plain(x, step).keys() == {"block 1", "block 2"}
    assert all(0 < loss < 4 for loss in losses.values())

    features = teacher.encode(method.denormalise(x)).patches
    torch.testing.assert_close(method.features(x), features)
    mask = method.masking(step.keys, (4, 4))
    opposite = method.losses(x, mask, -features, step.keys)
    same = method.losses(x, mask, features, step.keys)
    for name, loss in same.items():  # 2 - 2 cos and 2 + 2 cos
        assert (loss + opposite[name]).item() == pytest.approx(4, abs=1e-5)


# MaskSub ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["bce", "ce"])
def test_the_masked_branch_learns_the_other_ones_prediction(loss: str) -> None:
    method = build("masksub", loss=loss).double()
    assert isinstance(method, MaskSub)
    x, step = batch(method)
    x = x.double()
    mask = method.masking(step.keys, (4, 4))
    assert (mask.sum(1) == 8).all()
    losses = method.losses(x, mask, step.labels)
    main = method.logits(method.encoder.encode(x)).detach().numpy()
    sub = method.logits(method.encoder.encode(x, mask)).detach().numpy()

    def distance(scores: np.ndarray, target: np.ndarray) -> float:
        if loss == "bce":
            p = 1 / (1 + np.exp(-scores))
            return float(-(target * np.log(p) + (1 - target) * np.log(1 - p)).mean())
        p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        return float(-(target * np.log(p)).sum(1).mean())

    truth = np.eye(10)[step.labels.numpy()]
    p = np.exp(main) / np.exp(main).sum(1, keepdims=True) if loss == "ce" else 1 / (1 + np.exp(-main))
    assert losses["labels"].item() == pytest.approx(distance(main, truth) / 2, abs=1e-12)
    assert losses["masked"].item() == pytest.approx(distance(sub, p) / 2, abs=1e-12)


def test_the_masked_branch_does_not_teach_the_other_one() -> None:
    """Its target carries no gradient: only what the sub-branch itself computes is moved by its loss."""
    method = build("masksub", loss="ce").double()
    x, step = batch(method)
    mask = method.masking(step.keys, (4, 4))
    x = x.double().requires_grad_()
    method.losses(x, mask, step.labels)["masked"].backward()
    hidden = mask.view(-1, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3).expand_as(x)
    assert not x.grad[hidden].any()
    assert x.grad[~hidden].any()


# Sup-MIM ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classify", ["whole", "masked"])
def test_label_and_hidden_tokens_are_told_apart(classify: str) -> None:
    """Each loss is the naive cross-entropy; which patches the label is told from is the setting's."""
    method = build("sup_mim", classify=classify, label_smoothing=0.0, token_weight=0.5).double()
    assert isinstance(method, SupMIM)
    x, step = batch(method, n=3)
    x = x.double()
    mask, ids = method.masking(step.keys, (4, 4)), method.token_ids(x.float())
    losses = method.losses(x, mask, ids, step.labels)

    visible = method.encoder.encode(x, mask)
    seen = visible if classify == "masked" else method.encoder.encode(x)
    scores = method.classifier(seen.patches.mean(1)).log_softmax(-1)
    expected = -np.mean([scores[b, label].item() for b, label in enumerate(step.labels)])
    assert losses["labels"].item() == pytest.approx(expected, abs=1e-12)

    hidden = where(mask)
    told = method.decoder(method.mask_tokens(visible, hidden), last=12).log_softmax(-1)
    terms = [told[b, i, ids[b, n]].item() for b in range(3) for i, n in enumerate(hidden[b])]
    assert losses["tokens"].item() == pytest.approx(-0.5 * np.mean(terms), abs=1e-12)


# MTO --------------------------------------------------------------------------------------------------


def test_mask_tokens_are_told_from_patches_pair_by_pair() -> None:
    x, mask = images(3, 5, 4) - 0.5, torch.tensor([[0, 1, 1, 0, 0], [1, 0, 0, 0, 1], [0, 0, 1, 1, 0]]).bool()
    terms = []
    for b in range(3):
        for i in range(5):
            for j in range(5):
                if mask[b, i] and not mask[b, j]:
                    u, v = x[b, i].numpy(), x[b, j].numpy()
                    terms.append((u @ v) ** 2 / (u @ u) / (v @ v))
    assert likeness(x, mask).item() == pytest.approx(np.mean(terms), abs=1e-12)


def test_attention_to_mask_tokens_is_counted_where_it_is_given() -> None:
    """Against the blocks taken one by one, over every visible query and head; the first counts most."""
    method = build("mto", early=1.0).double()
    assert isinstance(method, MTO)
    with torch.no_grad():
        for table in method.encoder.rel_pos:
            table.relative_position_bias_table.normal_(generator=torch.Generator().manual_seed(2))
    x, step = batch(method, n=2)
    x, mask = x.double(), method.masking(step.keys, (4, 4))
    encoder = method.encoder
    tokens = encoder.patch_embed(x)
    tokens[mask] = encoder.mask_token[0, 0]
    tokens = torch.cat([encoder.cls_token.expand(2, -1, -1), tokens], 1)
    bias, shares, likes = encoder.rel_pos[0].get_bias(), [], []
    for block in encoder.blocks:
        normed = block.norm1(tokens)
        q, k, _ = block.attn.qkv(normed).unflatten(2, (3, 2, 16)).unbind(2)
        given = []
        for b in range(2):
            for head in range(2):
                scores = q[b, :, head] @ k[b, :, head].T / 4 + bias[0, head]
                probabilities = scores.softmax(-1)
                for query in [0, *(1 + i for i in range(16) if not mask[b, i])]:
                    given.append(sum(probabilities[query, 1 + j].item() for j in range(16) if mask[b, j]))
        shares.append(np.mean(given))
        likes.append(likeness(tokens[:, 1:], mask).item())
        tokens = block(tokens, attn_mask=bias)
    encoded = encoder.encode(x, mask, fill="token", layers=method.layers)
    exclusion, singularity = method.terms(encoded, mask, DOUBLE)
    assert exclusion.item() == pytest.approx((shares[0] + 0.5 * shares[1]) / 1.5, abs=1e-12)
    assert singularity.item() == pytest.approx((likes[0] + 0.5 * likes[1]) / 1.5, abs=1e-12)


def test_the_terms_do_what_they_are_for() -> None:
    """Trained by them alone, visible tokens turn away from mask tokens, which turn away from patches."""
    method = build("mto", exclusion_weight=1.0, singularity_weight=1.0)
    optimizer = optimiser(method)
    x, step = batch(method)
    mask = method.masking(step.keys, (4, 4))
    first = method.losses(x, mask)
    for _ in range(20):
        losses = method.losses(x, mask)
        optimizer.zero_grad()
        (losses["exclusion"] + losses["singularity"]).backward()
        optimizer.step()
    last = method.losses(x, mask)
    assert last["exclusion"] < 0.7 * first["exclusion"]
    assert last["singularity"] < 0.7 * first["singularity"]
