"""Relations of tokens as a target, and redundant tokens as a mask, against plain renderings of the papers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from method_zoo.backbones.blocks import query_key_value
from method_zoo.parts.masking import hide_redundant
from method_zoo.parts.patches import joined, take
from method_zoo.parts.relations import Relations, divergence, relations
from mimbench.errors import UserError
from mimbench.method import Method

from .build import batch, build


def qkv(heads: int, width: int = 12, tokens: int = 5, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (3, 3, heads, tokens, width // heads)
    q, k, v = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return q, k, v


def test_relations_are_attention_in_as_many_heads_as_asked() -> None:
    q, k, v = qkv(heads=3)
    found = relations((q, k, v), heads=2)
    flat = [x.transpose(1, 2).flatten(2) for x in (q, k, v)]  # [B, T, D]
    for b in range(3):
        for head in range(2):
            one = [x[b, :, head * 6 : head * 6 + 6] for x in flat]
            expected = torch.softmax(one[0] @ one[1].T / math.sqrt(6), dim=1)
            torch.testing.assert_close(found.query_key[b, head].exp(), expected)
            expected = torch.softmax(one[2] @ one[2].T / math.sqrt(6), dim=1)
            torch.testing.assert_close(found.value_value[b, head].exp(), expected)


def test_relations_of_two_widths_compare() -> None:
    small, large = relations(qkv(2), heads=4), relations(qkv(4, width=32, seed=1), heads=4)
    assert small.query_key.shape == large.query_key.shape
    p, q = large.query_key.exp(), small.query_key.exp()
    rows = list(zip(p.flatten(0, 2), q.flatten(0, 2), strict=True))
    expected = sum(float((x * (x / y).log()).sum()) for x, y in rows) / len(rows)
    found = divergence(small.query_key, large.query_key)
    assert found.item() == pytest.approx(expected)
    assert divergence(large.query_key, large.query_key).item() == pytest.approx(0, abs=1e-12)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(UserError, match="does not divide into 5 relation heads"):
        relations(qkv(3), heads=5)
    method = build("tinymim")
    method.teacher.backbone.num_heads = 5
    with pytest.raises(UserError, match="a width of 32 does not divide into 5"):
        type(method)(method.encoder, teacher=method.teacher)


def test_redundant_patches_are_hidden_stage_by_stage() -> None:
    generator = torch.Generator().manual_seed(0)
    stages = [torch.randn(4, 16, 8, generator=generator) + 1 for _ in range(3)]
    mask = hide_redundant(stages, [5, 3, 2])
    for image in range(4):
        left = list(range(16))
        for stage, amount in zip(stages, [5, 3, 2], strict=True):
            average = stage[image, left].mean(0)
            alike = {i: float(F.cosine_similarity(stage[image, i], average, dim=0)) for i in left}
            for redundant in sorted(alike, key=alike.__getitem__, reverse=True)[:amount]:
                left.remove(redundant)
        assert (~mask[image]).nonzero()[:, 0].tolist() == left
    assert not hide_redundant(stages, [0, 0, 0]).any()


def hybrid() -> tuple[Method, Tensor]:
    method = build("hybrid_distill").double().eval()
    images, _ = batch(method)
    return method, images.double()


def test_hybrid_distillation_compares_what_the_paper_compares() -> None:
    method, images = hybrid()
    mask, features, target = method.targets(method.denormalise(images))
    losses = method.losses(images, mask, features, target)

    encoder, teacher, kept = method.encoder, method.teacher, (~mask).nonzero()[:, 1].view(len(mask), -1)
    assert kept.shape == (8, 6)
    plain = method.denormalise(images)
    told = method.head(encoder.encode(images, mask).patches)
    wanted = F.layer_norm(take(teacher.encode(plain).patches, kept), told.shape[-1:])
    difference = (told - wanted).abs()
    smooth = torch.where(difference < 1, difference.square() / 2, difference - 0.5).mean()
    torch.testing.assert_close(losses["features"], smooth)

    before = encoder.encode(images, mask, layers=(-2,)).layers[0]
    q, k, v = query_key_value(encoder.blocks[-1], joined(*before))
    mim = method.mim_teacher
    cls, patches = mim.encode(plain, layers=(-2,)).layers[0]
    all_q, all_k, all_v = mim.query_key_value(-1, joined(cls, patches))
    rows = torch.cat([torch.zeros(8, 1, dtype=torch.int64), kept + 1], dim=1)[:, None, :, None]
    for name, (a, b), (c, d) in [
        ("query_key", (q, k), (all_q, all_k)),
        ("value_value", (v, v), (all_v, all_v)),
    ]:
        c, d = (x.gather(2, rows.expand(-1, x.shape[1], -1, x.shape[3])) for x in (c, d))
        student, theirs = (x @ y.transpose(-2, -1) / math.sqrt(x.shape[-1]) for x, y in ((a, b), (c, d)))
        expected = F.kl_div(student.log_softmax(-1), theirs.softmax(-1), reduction="sum")
        torch.testing.assert_close(losses[name], expected / student[..., 0].numel())


def test_a_student_that_is_its_teacher_has_nothing_to_learn_of_relations() -> None:
    method = build("tinymim", teacher_layer=1.0).double().eval()
    images = batch(method)[0].double()
    method.encoder.load_state_dict(method.teacher.backbone.state_dict())
    method.teacher.mean.zero_()
    method.teacher.std.fill_(1)
    target = method.target(images)
    assert isinstance(target, Relations)
    assert method.losses(images, target).total.item() == pytest.approx(0, abs=1e-10)
    method.teacher.std.fill_(2)
    assert method.losses(images, method.target(images)).total.item() > 1e-6
