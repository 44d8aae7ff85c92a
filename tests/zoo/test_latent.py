"""What is peculiar to SdAE, RC-MAE, AMT, Latent MIM and N-JEPA, against plain renderings of it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from method_zoo.amt import AMT
from method_zoo.backbones.positions import sincos_positions, stretched_positions
from method_zoo.latentmim import CuedTokens, LatentMIM, mean_similarity
from method_zoo.mae import MAE
from method_zoo.njepa import NJEPA
from method_zoo.rcmae import RCMAE
from method_zoo.sdae import SdAE
from mimbench.encoder import Encoded
from mimbench.errors import UserError

from .build import batch, build, optimiser, train


def perturb(module: nn.Module, seed: int = 3) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def reconstruction(mae: nn.Module, image: Tensor, mask: Tensor) -> list[Tensor]:
    """What an MAE makes of the hidden patches of one image, the sequence put together patch by patch."""
    encoded = mae.encoder.encode(image[None], mask[None], fill="drop")
    visible, parts = iter(encoded.patches[0]), [mae.mask_tokens.embed(encoded.cls[0])]
    for place, hidden in enumerate(mask.tolist()):
        token = mae.mask_tokens.mask_token[0, 0] if hidden else mae.mask_tokens.embed(next(visible))
        parts.append(token + mae.mask_tokens.positions[place])
    out = mae.decoder(torch.stack(parts)[None], last=len(mask))[0]
    return [out[place] for place, hidden in enumerate(mask.tolist()) if hidden]


def patches(image: Tensor, mask: Tensor, size: int = 4) -> list[Tensor]:
    """Hidden patches of one image, each normalised, numbers in the order row, column, channel."""
    found = []
    for place, hidden in enumerate(mask.tolist()):
        if hidden:
            y, x = divmod(place, image.shape[-1] // size)
            patch = image[:, y * size : (y + 1) * size, x * size : (x + 1) * size].permute(1, 2, 0).flatten()
            found.append((patch - patch.mean()) / (patch.var() + 1e-6).sqrt())
    return found


# RC-MAE -----------------------------------------------------------------------------------------------


def test_rcmae_is_mae_with_a_teacher_to_agree_with() -> None:
    method = build("rcmae", consistency_weight=0.7).double()
    assert isinstance(method, RCMAE)
    perturb(method.teacher)
    images, step = batch(method, n=3)
    images = images.double()
    mask = method.masking(step.keys, method.encoder.grid)
    losses = method(images, step)

    student, teacher = (build("mae").double() for _ in range(2))
    for name in ("encoder", "mask_tokens", "decoder"):
        getattr(student, name).load_state_dict(getattr(method, name).state_dict())
        getattr(teacher, name).load_state_dict(method.teacher[name].state_dict())
    assert isinstance(student, MAE)
    torch.testing.assert_close(losses["reconstruction"], student.losses(images, mask)["reconstruction"])

    squares, pixels = [], []
    for image, hidden in zip(images, mask, strict=True):
        for s, t, target in zip(
            reconstruction(student, image, hidden),
            reconstruction(teacher, image, hidden),
            patches(image, hidden),
            strict=True,
        ):
            squares += ((s - t) ** 2).tolist()
            pixels += ((s - target) ** 2).tolist()
    assert losses["consistency"].item() == pytest.approx(0.7 * sum(squares) / len(squares), abs=1e-9)
    assert losses["reconstruction"].item() == pytest.approx(sum(pixels) / len(pixels), abs=1e-9)


def test_rcmaes_teacher_agrees_with_its_student_at_the_start() -> None:
    method = build("rcmae")
    assert method(*batch(method))["consistency"].item() == pytest.approx(0, abs=1e-9)


def test_rcmaes_momentum_reaches_one() -> None:
    method = build("rcmae")
    before = [p.clone() for p in method.teacher.parameters()]
    perturb(method.encoder)
    method.after_step(batch(method, progress=1 - 1e-12)[1])
    assert all(
        torch.allclose(a, b, atol=1e-9) for a, b in zip(before, method.teacher.parameters(), strict=True)
    )
    method.after_step(batch(method, progress=0.0)[1])
    for mean, old, new in zip(
        method.teacher["encoder"].parameters(), before, method.encoder.parameters(), strict=False
    ):
        torch.testing.assert_close(mean, 0.996 * old + 0.004 * new)


# AMT --------------------------------------------------------------------------------------------------


def amt_after_its_start() -> AMT:
    method = build("amt")
    assert isinstance(method, AMT)
    perturb(method.encoder)
    method.after_step(batch(method, progress=0.1)[1])
    return method


def test_amt_hides_in_proportion_to_attention() -> None:
    method = build("amt", mask_ratio=1 / 16, throw_ratio=0.4)
    weights = torch.arange(16.0).expand(20_000, -1) / 16
    first, _ = method.masks(weights, torch.arange(20_000))
    counts = first.sum(0).double()
    expected = weights[0].double() / weights[0].sum() * 20_000
    assert first.sum(1).eq(1).all()
    assert counts[0] == 0, "a patch without attention was hidden first"
    chi2 = float(((counts - expected)[1:] ** 2 / expected[1:]).sum())
    assert chi2 < 14 + 5 * math.sqrt(2 * 14)


def test_amt_masks_throws_and_shows_as_many_patches_as_the_code() -> None:
    method = amt_after_its_start()
    images, step = batch(method)
    masked, thrown = method.masks(method.attention(images), step.keys)
    assert not (masked & thrown).any()
    assert masked.sum(1).eq(int(16 * 0.45)).all()
    assert (masked | thrown).sum(1).eq(int(16 * 0.85)).all()


def test_amt_reads_attention_as_a_loop_does() -> None:
    method = amt_after_its_start()
    images, _ = batch(method, n=3)
    snapshot = method.snapshot["encoder"]
    probabilities = snapshot.encode(images, attention=True).attention
    ours = method.attention(images)
    for b in range(3):
        mean = torch.zeros(16)
        for head in probabilities[b]:
            row = head[0][1:]
            mean += (row - row.min()) / (row.max() - row.min()) / len(probabilities[b])
        torch.testing.assert_close(ours[b], mean)


def test_what_amt_throws_away_is_seen_by_nothing() -> None:
    method = amt_after_its_start()
    images, step = batch(method, n=4)
    masked, thrown = method.masks(method.attention(images), step.keys)
    other = images.clone()
    pixels = thrown.view(-1, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    other[pixels.expand_as(other)] = 7.0
    assert torch.equal(
        method.losses(images, masked, thrown).total, method.losses(other, masked, thrown).total
    )
    assert not torch.equal(
        method.losses(images, masked, torch.zeros_like(thrown)).total,
        method.losses(other, masked, torch.zeros_like(thrown)).total,
    )


def test_amts_snapshot_is_taken_when_due_and_stands_still_between() -> None:
    method = build("amt")
    optimizer = optimiser(method)
    images, step = batch(method)
    taken = []
    before = method.snapshot["encoder"].patch_embed.proj.weight.clone()
    for i in range(20):
        progress = i / 20 + 1e-6
        train(method, optimizer, images, replace(step, progress=progress))
        now = method.snapshot["encoder"].patch_embed.proj.weight
        if not torch.equal(now, before):
            assert torch.equal(now, method.encoder.patch_embed.proj.weight)
            taken.append(i)
        before = now.clone()
    assert taken == [2, 4, 6, 8, 10, 12, 14, 16, 18]


def test_amt_without_a_class_token_or_patches_is_a_sentence() -> None:
    with pytest.raises(UserError, match="leaves none"):
        build("amt", mask_ratio=0.5, throw_ratio=0.5)
    method = build("amt")
    method.encoder.config["cls_token"] = False
    with pytest.raises(UserError, match="class token"):
        AMT(method.encoder)


# SdAE -------------------------------------------------------------------------------------------------


def test_sdaes_teacher_sees_one_fold_at_a_time() -> None:
    method = build("sdae")
    assert isinstance(method, SdAE)
    images, _ = batch(method, n=2)
    hidden = torch.stack([torch.randperm(16)[:12] for _ in range(2)])
    folds = hidden.view(2, 3, 4)
    features = method.features(images, folds)
    other = images.clone()
    first = torch.zeros(2, 16, dtype=torch.bool).scatter_(1, folds[:, 0], True)
    pixels = first.view(-1, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    other[pixels.expand_as(other)] = 5.0
    changed = (method.features(other, folds) != features).any(-1)
    assert torch.equal(changed, first)
    assert torch.equal(
        (features == 0).all(-1), torch.ones(2, 16, dtype=torch.bool).scatter_(1, hidden, False)
    )


@pytest.mark.parametrize("over", ["patches", "channels"])
def test_sdaes_similarity_runs_over_what_it_says(over: str) -> None:
    method = build("sdae", cosine_over=over, folds=2, mask_ratio=0.7).double()
    images, _ = batch(method, n=2)
    images = images.double()
    hidden = torch.stack([torch.randperm(16)[:12] for _ in range(2)])[:, :11]  # one is left over
    mask = torch.zeros(2, 16, dtype=torch.bool).scatter_(1, hidden, True)
    features = method.features(images, hidden[:, :10].view(2, 2, 5))
    encoded = method.encoder.encode(images, mask, fill="drop")
    predicted = method.decoder(method.mask_tokens(encoded, hidden), last=11)
    similarities = []
    for b in range(2):
        for fold in ([0, 1, 2, 3, 4], [5, 6, 7, 8, 9]):
            p = predicted[b, fold]
            t = features[b, hidden[b, fold]]
            if over == "patches":
                p, t = p.T, t.T
            similarities += [F.cosine_similarity(x, y, dim=0).item() for x, y in zip(p, t, strict=True)]
    loss = method.losses(images, mask, hidden).total
    assert loss.item() == pytest.approx(1 - sum(similarities) / len(similarities), abs=1e-9)


def test_sdaes_teacher_moves_as_often_in_a_long_run_as_in_a_short_one() -> None:
    moved = []
    for n in (10, 40):
        method = build("sdae", updates=20)
        perturb(method.encoder)
        _, step = batch(method)
        for i in range(n):
            method.after_step(replace(step, progress=i / n))
        assert int(method.updated) == (18 if n == 10 else 19)
        weight = method.teacher["encoder"].patch_embed.proj.weight
        for i in range(int(method.updated), 20):  # what the last steps' progress leaves undone
            momentum = 0.99 + 0.5 * (0.96 - 0.99) * (1 + math.cos(math.pi * i / 20))
            weight = momentum * weight + (1 - momentum) * method.encoder.patch_embed.proj.weight
        moved.append(weight.detach())
    torch.testing.assert_close(moved[0], moved[1])


# Latent MIM -------------------------------------------------------------------------------------------


def test_patches_with_gaps_are_cut_where_their_shifts_say() -> None:
    method = build("latentmim", gap=0.5)  # 2 pixels between patches of 4
    assert isinstance(method, LatentMIM)
    (view,) = method.views
    assert (view.image_size, view.crop) == (24, "same")
    large = torch.randn(3, 3, 24, 24)
    shifts = torch.randint(0, 3, (3, 32))
    small = method.with_gaps(large, shifts)
    assert small.shape == (3, 3, 16, 16)
    for b in range(3):
        for n in range(16):
            row, column = divmod(n, 4)
            top, left = 6 * row + int(shifts[b, n]), 6 * column + int(shifts[b, 16 + n])
            ours = small[b, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            assert torch.equal(ours, large[b, :, top : top + 4, left : left + 4])


def test_latent_mim_without_gaps_asks_for_no_further_crop() -> None:
    method = build("latentmim", gap=0.0)
    assert method.views == ()
    images, step = batch(method)
    assert torch.isfinite(method(images, step).total)


def test_a_cue_is_a_mean_of_the_patches_whose_positions_are_alike() -> None:
    tokens = CuedTokens(8, 12, (3, 3), cues=True, learned=False).double()
    perturb(tokens)
    kept, hidden = torch.tensor([[0, 4, 8]]), torch.tensor([[1, 2, 3, 5, 6, 7]])
    visible = Encoded(torch.randn(1, 8).double(), torch.randn(1, 3, 8).double(), kept, (), None)
    queries, context = tokens(visible, hidden)
    assert queries.shape == (1, 7, 12)
    assert context.shape == (1, 4, 12)
    place = tokens.positions[1:]
    torch.testing.assert_close(queries[0, 0], tokens.cls_token[0, 0])
    torch.testing.assert_close(context[0, 0], tokens.embed(visible.cls[0]))
    embedded = [tokens.embed(patch) for patch in visible.patches[0]]
    for i, n in enumerate(hidden[0].tolist()):
        alike = torch.stack([place[n] @ place[k] / math.sqrt(12) for k in kept[0].tolist()]).exp()
        cue = sum(w * patch for w, patch in zip(alike / alike.sum(), embedded, strict=True))
        torch.testing.assert_close(queries[0, 1 + i], tokens.mask_token[0, 0] + cue + place[n])
    for i, n in enumerate(kept[0].tolist()):
        torch.testing.assert_close(context[0, 1 + i], embedded[i] + place[n])


def test_similarity_is_the_mean_over_all_pairs_of_patches_of_an_image() -> None:
    features = torch.randn(3, 5, 4, dtype=torch.float64)
    pairs = [
        F.cosine_similarity(image[i], image[j], dim=0)
        for image in features
        for i in range(5)
        for j in range(5)
    ]
    torch.testing.assert_close(mean_similarity(features), torch.stack(pairs).mean())


def test_stretched_positions_reach_the_end_of_the_grid() -> None:
    assert torch.equal(stretched_positions(16, (1, 1)), sincos_positions(16, (1, 1)))
    stretched = stretched_positions(16, (3, 5))
    frequencies = 10000.0 ** -(torch.arange(4) / 4)
    for n, table in enumerate(stretched):
        y, x = n // 5 * 3 / 2, n % 5 * 5 / 4
        angles = torch.cat([x * frequencies, y * frequencies]).view(2, 4)
        expected = torch.stack([angles.sin(), angles.cos()], dim=1).flatten()
        torch.testing.assert_close(table, expected, rtol=1e-5, atol=1e-6)


# N-JEPA -----------------------------------------------------------------------------------------------


def test_njepa_without_noise_is_ijepa_twice() -> None:
    noised, plain = build("njepa", noise_weight=0.5), build("ijepa")
    assert isinstance(noised, NJEPA)
    plain.load_state_dict(noised.state_dict())
    images, step = batch(noised)
    blocks = noised.masking(step.keys, noised.encoder.grid, step.progress)
    width = noised.mask_tokens.mask_token.shape[-1]
    losses = noised.noised_losses(images, *blocks, torch.zeros(*blocks.targets.shape, width))
    expected = plain(images, step)["features"]
    torch.testing.assert_close(losses["features"], expected)
    torch.testing.assert_close(losses["features_under_noise"], 0.5 * expected)


def test_njepas_noise_has_a_level_of_its_own_in_each_block_of_each_image() -> None:
    method = build("njepa")
    assert isinstance(method, NJEPA)
    targets = torch.zeros(4, 500, 9, dtype=torch.int64)
    noise = method.noise(torch.arange(500), targets)
    assert noise.shape == (4, 500, 9, 32)
    levels = noise.square().mean((2, 3)).sqrt().log()
    assert abs(float(levels.mean()) - -1.2) < 0.1
    assert abs(float(levels.std()) - 1.2) < 0.1
    assert abs(float(torch.corrcoef(levels).fill_diagonal_(0).abs().max())) < 0.15
    directions = F.normalize(noise[0, :, 0], dim=-1)
    assert float((directions @ directions.T).fill_diagonal_(0).mean().abs()) < 0.01


def test_njepas_noise_falls_on_mask_tokens_only() -> None:
    method = build("njepa")
    assert isinstance(method, NJEPA)
    images, step = batch(method, n=2)
    blocks = method.masking(step.keys, method.encoder.grid, step.progress)
    seen = method.seen(images, blocks.contexts[0])
    noise = torch.randn(8, blocks.targets.shape[2], 32)
    given = []
    method.predictor.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    method.predict(seen, blocks.targets)
    method.predict(seen, blocks.targets, noise)
    m = blocks.targets.shape[2]
    assert torch.equal(given[0][:, :-m], given[1][:, :-m])
    torch.testing.assert_close(given[1][:, -m:] - given[0][:, -m:], noise)
