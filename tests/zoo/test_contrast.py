"""Contrastive losses against loops, heads against torch's layers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from method_zoo.parts.contrast import batch_contrast, patch_contrast, two_view_contrast
from method_zoo.parts.ema import MovingAverage
from method_zoo.parts.heads import TokenBatchNorm, mlp_head
from mimbench.errors import UserError

from .build import build


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.5


def surprise(query: Tensor, own: int, keys: list[Tensor], temperature: float) -> float:
    """Minus the log of the softmax of the own key's cosine."""
    scores = [math.exp(float(F.cosine_similarity(query, key, dim=0)) / temperature) for key in keys]
    return -math.log(scores[own] / sum(scores))


def test_batch_contrast_never_takes_another_image_for_the_positive() -> None:
    queries, keys = rows(5, 3), rows(5, 3, seed=1)
    expected = [surprise(queries[i], i, list(keys), 0.3) for i in range(5)]
    assert float(batch_contrast(queries, keys, 0.3)) == pytest.approx(sum(expected) / 5, abs=1e-12)


def test_two_view_contrast_leaves_the_vector_itself_out() -> None:
    first, second = rows(4, 3), rows(4, 3, seed=1)
    expected = []
    for i in range(4):
        for mine, other in ((first, second), (second, first)):
            negatives = [v[j] for v in (first, second) for j in range(4) if j != i]
            expected.append(surprise(mine[i], 0, [other[i], *negatives], 0.2))
    assert float(two_view_contrast(first, second, 0.2)) == pytest.approx(sum(expected) / 8, abs=1e-12)


def test_patch_contrast_has_no_negatives_of_other_images() -> None:
    queries, keys = rows(2, 3, 4), rows(2, 5, 4, seed=1)
    own = torch.tensor([[4, 0, 2], [1, 3, 0]])
    expected = [
        surprise(queries[b, i], int(own[b, i]), list(keys[b]), 0.1) for b in range(2) for i in range(3)
    ]
    assert float(patch_contrast(queries, keys, own, 0.1)) == pytest.approx(sum(expected) / 6, abs=1e-12)


def test_a_contrast_at_low_temperature_is_not_taken_in_half_precision() -> None:
    queries, keys = rows(6, 8).float(), rows(6, 8, seed=1).float()
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(
            batch_contrast(queries, keys, 0.05), batch_contrast(queries.double(), keys.double(), 0.05).float()
        )


def test_a_head_has_the_published_layers() -> None:
    """ConMIM's: no bias, a norm and an activation between layers, a norm without gain on the output."""
    torch.manual_seed(0)
    head = mlp_head((6, 5, 5, 3), hidden_bias=False, last_bias=False, last_norm=True)
    x, (first, norm, _, second, norm2, _, third, _) = rows(7, 6).float(), head
    plain = F.batch_norm(first(x), None, None, norm.weight, norm.bias, training=True).relu()
    plain = F.batch_norm(second(plain), None, None, norm2.weight, norm2.bias, training=True).relu()
    assert_close(head(x), F.batch_norm(third(plain), None, None, training=True))
    assert all(layer.bias is None for layer in (first, second, third))
    kinds = [type(layer) for layer in mlp_head((6, 5, 3), norm="none", activation="gelu")]
    assert kinds == [nn.Linear, nn.GELU, nn.Linear]


def test_a_teacher_s_head_normalises_by_its_batch_unless_it_keeps_averages() -> None:
    x = rows(16, 4).float() * 5
    torch.manual_seed(0)
    head = mlp_head((4, 8, 3))
    trained = head.train()(x)
    assert torch.equal(head.eval()(x), trained)
    averaging = mlp_head((4, 8, 3), running_statistics=True)
    averaging.load_state_dict(head.state_dict(), strict=False)
    assert torch.equal(averaging.train()(x), trained)
    assert not torch.allclose(averaging.eval()(x), trained)


def test_a_token_norm_counts_every_token_of_every_image() -> None:
    x = rows(3, 5, 4).float() * 2
    norm = TokenBatchNorm(4).eval()
    out = norm(x).flatten(0, 1)
    assert_close(out.mean(0), torch.zeros(4), atol=1e-6, rtol=0)
    assert_close(out.var(0, correction=0), torch.ones(4), atol=1e-4, rtol=0)
    assert norm(x.bfloat16()).dtype == torch.float32


def test_an_average_of_statistics_lags_behind_its_student() -> None:
    norm = nn.BatchNorm1d(3)
    teacher = MovingAverage(norm=norm)
    norm(rows(20, 3).float() * 4)
    teacher.update(0.75, average_buffers=True, norm=norm)
    assert_close(teacher["norm"].running_var, 0.75 * torch.ones(3) + 0.25 * norm.running_var)
    assert int(teacher["norm"].num_batches_tracked) == 1, "a counter is copied"
    teacher.update(0.75, norm=norm)
    assert torch.equal(teacher["norm"].running_var, norm.running_var)


def test_lut_never_shows_a_patch_in_both_views() -> None:
    method = build("lut", mask_ratio=0.7)  # 4 of 16 patches visible
    first, second = method.masks(torch.rand(50, 16, generator=torch.Generator().manual_seed(0)))
    assert ((~first).sum(1) == 4).all()
    assert ((~second).sum(1) == 4).all()
    assert (first | second).all()
    with pytest.raises(UserError, match=r"choose 0\.5 or more"):
        build("lut", mask_ratio=0.4)
