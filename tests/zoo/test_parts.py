"""Decoders, targets, losses and moving averages against loops and closed forms; what methods make of them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from method_zoo.backbones import build
from method_zoo.beit import BEiT
from method_zoo.hpm import HPM
from method_zoo.mae import MAE
from method_zoo.parts.decoders import MaskTokens, TransformerDecoder, decoder_size
from method_zoo.parts.ema import MovingAverage, cosine, linear
from method_zoo.parts.frozen import Frozen
from method_zoo.parts.losses import ranking
from method_zoo.parts.patches import patchify, take, unpatchify, where
from method_zoo.parts.targets import layer_average, normalised
from method_zoo.simmim import SimMIM
from mimbench.encoder import Encoded
from mimbench.errors import UserError
from mimbench.method import Step


def vit(**options: Any) -> nn.Module:
    return build("vit_micro_patch4", 16, **{"embed_dim": 32, "depth": 2, "num_heads": 2, **options})


def step(n: int = 4, progress: float = 0.5) -> Step:
    return Step(progress, torch.arange(n) + 11)


def test_patches_lie_in_the_order_they_say() -> None:
    images = torch.randn(2, 3, 6, 4)
    pixel, channel = patchify(images, 2), patchify(images, 2, order="channel")
    for n in range(6):
        y, x = n // 2 * 2, n % 2 * 2
        square = images[:, :, y : y + 2, x : x + 2]
        assert torch.equal(channel[:, n], square.flatten(1))
        assert torch.equal(pixel[:, n], square.permute(0, 2, 3, 1).flatten(1))


def test_an_image_survives_being_cut_into_patches() -> None:
    images = torch.randn(2, 3, 6, 4)
    for order in ("pixel", "channel"):
        assert torch.equal(unpatchify(patchify(images, 2, order), (3, 2), order), images)


def test_taking_what_is_where_gives_the_chosen_patches() -> None:
    patches, chosen = torch.randn(3, 7, 2), torch.rand(3, 7).argsort(1) < 4
    assert torch.equal(
        take(patches, where(chosen)), torch.stack([p[c] for p, c in zip(patches, chosen, strict=True)])
    )


def test_a_flat_patch_does_not_become_nan() -> None:
    assert torch.equal(normalised(torch.ones(2, 5)), torch.zeros(2, 5))


def test_ranking_counts_each_pair_once() -> None:
    scores, values = torch.randn(2, 5, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    values[0, 1] = values[0, 3]  # a tie is no pair
    terms = [
        -math.log(1 / (1 + math.exp(scores[b, j] - scores[b, i])) + 1e-6)
        for b in range(2)
        for i in range(5)
        for j in range(5)
        if values[b, i] > values[b, j]
    ]
    assert len(terms) == 19
    assert ranking(scores, values).item() == pytest.approx(sum(terms) / 19, rel=1e-12)


def test_a_row_without_pairs_does_not_become_nan() -> None:
    assert ranking(torch.randn(2, 1), torch.randn(2, 1)).item() == 0


def test_decoding_visible_then_hidden_is_decoding_in_raster_order() -> None:
    """MAE's code shuffles back before its decoder; ours does not need to."""
    tokens = MaskTokens(8, 16, (2, 3)).double()
    decoder = TransformerDecoder(16, 2, 4, 5).double()
    nn.init.normal_(tokens.mask_token)
    hidden = torch.rand(2, 6).argsort(1) < 4
    kept, lost = where(~hidden), where(hidden)
    cls, visible = torch.randn(2, 8, dtype=torch.float64), torch.randn(2, 2, 8, dtype=torch.float64)
    ours = decoder(tokens(Encoded(cls, visible, kept, (), None), lost), last=4)

    raster = tokens.mask_token.expand(2, 6, -1).clone()
    for b in range(2):
        raster[b, kept[b]] = tokens.embed(visible[b])
    sequence = torch.cat([tokens.embed(cls)[:, None], raster + tokens.positions], 1)
    everything = decoder(sequence, last=6)
    torch.testing.assert_close(ours, take(everything, lost), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("micro", (32, 3, 1)),
        ("tiny", (128, 8, 4)),
        ("small", (256, 8, 8)),
        ("base", (512, 8, 16)),
        ("large", (512, 8, 16)),
    ],
)
def test_the_default_decoder_keeps_its_proportion(size: str, expected: tuple[int, int, int]) -> None:
    with torch.device("meta"):
        assert decoder_size(build(f"vit_{size}_patch16", 32)) == expected


def test_decoder_heads_that_do_not_divide_are_a_sentence() -> None:
    with pytest.raises(UserError, match="decoder width of 96 does not divide into 5 heads"):
        MAE(vit(), decoder_dim=96, decoder_heads=5)


def test_a_moving_average_is_the_closed_form_and_never_trains() -> None:
    student = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Dropout(0.5))
    average = MovingAverage(net=student)
    expected = [p.detach().clone() for p in student.parameters()]
    for momentum in (0.9, 0.5, 0.0):
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.normal_()
        student[1].running_mean.add_(1)
        student[1].num_batches_tracked.add_(1)
        average.update(momentum, net=student)
        expected = [
            momentum * e + (1 - momentum) * p.detach()
            for e, p in zip(expected, student.parameters(), strict=True)
        ]
        for held, want in zip(average["net"].parameters(), expected, strict=True):
            torch.testing.assert_close(held.detach(), want)
    for name, buffer in student.named_buffers():
        assert torch.equal(dict(average["net"].named_buffers())[name], buffer)
    assert not any(p.requires_grad for p in average.parameters())
    average.train()
    assert not any(module.training for module in average.modules())


def test_an_average_over_other_networks_is_refused() -> None:
    with pytest.raises(ValueError, match="student"):
        MovingAverage(student=nn.Linear(2, 2)).update(0.9, teacher=nn.Linear(2, 2))


def test_what_is_frozen_stays_frozen_inside_a_method_in_training() -> None:
    holder = nn.Sequential(nn.Linear(2, 2), Frozen(net=nn.BatchNorm1d(2))).train()
    holder[1]["net"](torch.randn(8, 2))
    assert not holder[1]["net"].training
    assert not holder[1]["net"].running_mean.any()


def test_hpm_hides_the_hardest_share_that_progress_allows() -> None:
    method = HPM(vit())
    difficulty = torch.randn(64, 16)
    order = difficulty.argsort(1, descending=True)
    for progress, n_hard in ((0.0, 0), (0.2, 1), (0.5, 3), (0.999, 5)):
        mask = method.mask(difficulty, torch.arange(64), progress)
        assert (mask.sum(1) == 12).all()
        assert mask.gather(1, order[:, :n_hard]).all()
        rest = mask.gather(1, order[:, n_hard:]).double()
        expected = (12 - n_hard) / (16 - n_hard)  # of the others, each is as likely as the next
        assert (rest.mean(0) - expected).abs().max() < 0.25
        assert not rest.all()


def test_hpm_s_teacher_follows_the_student_with_a_rising_momentum() -> None:
    method = HPM(vit(), momentum_start=0.5, momentum_end=0.9)
    for progress, momentum in ((0.0, 0.5), (0.25, 0.7), (0.5, 0.9), (0.9, 0.9)):
        before = method.teacher["encoder"].cls_token.clone()
        with torch.no_grad():
            method.encoder.cls_token.normal_()
        method.after_step(step(progress=progress))
        expected = momentum * before + (1 - momentum) * method.encoder.cls_token
        torch.testing.assert_close(method.teacher["encoder"].cls_token, expected.detach())


def test_hpm_s_loss_predictor_does_not_pull_at_what_it_predicts() -> None:
    """The losses it learns from are constants: no gradient of its loss reaches the pixel decoder."""
    method = HPM(vit())
    method(torch.randn(4, 3, 16, 16), step())["difficulty"].backward()
    assert all(p.grad is None for p in method.decoder.parameters())
    assert method.encoder.cls_token.grad is not None


class Brightness(nn.Module):
    """A tokenizer of 8 tokens: how bright a patch is. Remembers what it was shown."""

    vocabulary = 8

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.seen: Tensor | None = None

    def ids(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        self.seen = images
        means = nn.functional.adaptive_avg_pool2d(images, grid).mean(1) * self.weight
        return (means * 7.999).long()


def test_beit_s_tokenizer_sees_the_plain_image_in_full_precision_and_stays_as_it_is() -> None:
    tokenizer = Brightness()
    method = BEiT(vit(**BEiT.card.backbone), tokenizer=tokenizer).train()
    plain = torch.rand(4, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        losses = method((plain - method.denormalise.mean) / method.denormalise.std, step())
    losses.total.backward()
    torch.testing.assert_close(tokenizer.seen, plain, rtol=0, atol=1e-6)
    assert tokenizer.seen.dtype == torch.float32
    assert not tokenizer.training
    assert tokenizer.weight.grad is None
    assert not tokenizer.weight.requires_grad


@pytest.mark.parametrize("size", [16, 32])
def test_beit_s_share_of_blocks_survives_another_grid(size: int) -> None:
    backbone = build("vit_micro_patch2", size, embed_dim=32, depth=1, num_heads=2, **BEiT.card.backbone)
    method = BEiT(backbone, tokenizer=Brightness())
    share = method.masking(torch.arange(256), backbone.grid).double().mean()
    assert 0.34 < share <= 75 / 196 + 0.01


def test_simmim_s_cells_that_do_not_tile_the_grid_are_a_sentence() -> None:
    with pytest.raises(UserError, match="mask cells of 3x3"):
        SimMIM(vit(**SimMIM.card.backbone), mask_unit=3)


def test_momentum_goes_where_it_is_told() -> None:
    for schedule in (linear, cosine):
        assert schedule(0.9, 1.0, 0.0) == pytest.approx(0.9)
        assert schedule(0.9, 1.0, 0.5) == pytest.approx(0.95)
        assert schedule(0.9, 1.0, 1.0) == pytest.approx(1.0)
    assert linear(0.0, 1.0, 0.25) == pytest.approx(0.25)
    assert linear(0.0, 1.0, 1.7) == 1.0
    assert cosine(0.0, 1.0, 0.25) == pytest.approx((1 - math.sqrt(0.5)) / 2)


@pytest.mark.parametrize("norm", ["layer", "instance", "none"])
@pytest.mark.parametrize("norm_average", [True, False])
def test_a_mean_of_layers_is_what_a_loop_makes_it(norm: Any, norm_average: bool) -> None:
    layers = [torch.randn(2, 5, 3, dtype=torch.float64) * (i + 1) + i for i in range(3)]

    def standard(x: Tensor) -> Tensor:
        return (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt()

    expected = torch.zeros(2, 5, 3, dtype=torch.float64)
    for layer in layers:
        for b in range(2):
            part = layer[b].clone()
            if norm == "layer":
                part = torch.stack([standard(token) for token in part])
            elif norm == "instance":
                part = torch.stack([standard(channel) for channel in part.T], dim=1)
            expected[b] += part / 3
    if norm_average:
        expected = torch.stack([torch.stack([standard(t) for t in image]) for image in expected])
    torch.testing.assert_close(layer_average(layers, norm, norm_average), expected)
