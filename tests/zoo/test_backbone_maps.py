"""Maps, windows and attention of every kind of backbone, against their blocks run on one window at a time."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import mimbench.torchvision_compat  # noqa: F401  isort: skip
import pytest
import torch
from timm.layers import RelPosBias, resize_rel_pos_bias_table
from torch import Tensor, nn

from method_zoo.backbones.dropout import run_dropping_block
from method_zoo.backbones.post_norm_vit import PostNormBlock
from method_zoo.backbones.rope_vit import RopeViT
from method_zoo.backbones.windows import Windows
from mimbench.encoder import Encoder
from mimbench.errors import UserError

from .backbone_kinds import BEIT, assert_close, images, in_double, ours, with_tokens


def test_maps_are_the_patch_tokens_before_the_norm(backbone: Any, pixels: Any) -> None:
    for one in (backbone, pixels):
        layers = (-1,) if one.depth == 1 else (-1, -one.depth, -2)
        x = images(one)
        maps = one.maps(x, layers)
        for found, (_, patches) in zip(maps, one.encode(x, layers=layers).layers, strict=True):
            assert_close(found, patches.transpose(1, 2).unflatten(2, (5, 5)))


def table_within(backbone: Any, i: int, side: int) -> Tensor | None:
    """The bias among the patches of a window, [1, heads, side², side²], out of timm's own module."""
    if not getattr(backbone, "rel_pos", None):
        return None
    source = backbone.rel_pos[i % len(backbone.rel_pos)]
    table = source.relative_position_bias_table[: (2 * source.window_size[0] - 1) ** 2]
    bias = RelPosBias((side, side), backbone.num_heads).double()
    shape = bias.relative_position_bias_table.shape
    resized = resize_rel_pos_bias_table(table, (side, side), shape, old_window_size=source.window_size)
    bias.relative_position_bias_table.data = resized
    return bias.get_bias()


def attend(backbone: Any, i: int, window: Tensor, side: int) -> Tensor:
    """The i-th block's attention among normalised patches of one window, [1, side², D]."""
    block = backbone.blocks[i]
    if isinstance(backbone, RopeViT):
        axis = torch.linspace(0, 1, side, dtype=torch.float64)
        places = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1).view(1, -1, 2)
        return block.attn(window, backbone.rotary(places))
    out = block.attn(window, attn_mask=table_within(backbone, i, side))
    return out if isinstance(block, PostNormBlock) else block.ls1(out)


def brute(backbone: Any, x: Tensor, side: int, global_blocks: tuple[int, ...]) -> Tensor:
    """The last block's patches [D, H, W] of one image, one window after the other."""
    h, w = backbone.grid
    x = x.view(h, w, -1)
    for i, block in enumerate(backbone.blocks):
        step = h if i in global_blocks else side
        padded = torch.zeros(-(-h // step) * step, -(-w // step) * step, x.shape[-1], dtype=x.dtype)
        post = isinstance(block, PostNormBlock)
        padded[:h, :w] = x if post else block.norm1(x)
        mixed = torch.zeros_like(padded)
        for top in range(0, len(padded), step):
            for left in range(0, len(padded), step):
                here = padded[top : top + step, left : left + step].reshape(1, step * step, -1)
                out = attend(backbone, i, here, step).view(step, step, -1)
                mixed[top : top + step, left : left + step] = out
        x = x + mixed[:h, :w]
        if post:
            x = block.norm1(x)
            x = block.norm2(x + block.mlp(x))
            continue
        y = block.mlp(block.norm2(x))
        x = x + (y if isinstance(backbone, RopeViT) else block.ls2(y))
    return x.permute(2, 0, 1)


@pytest.mark.parametrize(("grid", "window"), [(5, 2), (10, 5), (7, 5)])
def test_attention_within_windows_is_attention_of_each_window(backbone: Any, grid: int, window: int) -> None:
    copy = backbone.rebuilt(image_size=grid * backbone.patch_size).requires_grad_(False)
    x = images(copy, grid=grid)
    chosen = (1,) if copy.depth > 1 else ()
    found = copy.maps(x, (-1,), window=window, global_blocks=chosen)[0]
    tokens = entering(copy, x)
    for b in range(len(x)):
        assert_close(found[b], brute(copy, tokens[b], window, chosen), 2e-6 if grid != 5 else 1e-6)


def entering(backbone: Any, x: Tensor) -> Tensor:
    """Patch tokens that enter the first block, [B, N, D]."""
    seen: list[Tensor] = []
    handle = backbone.blocks[0].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    backbone.encode(x)
    handle.remove()
    return seen[0][:, -backbone.grid[0] * backbone.grid[1] :]


def test_blocks_that_are_all_global_know_no_windows(backbone: Any) -> None:
    x = images(backbone)
    everywhere = backbone.maps(x, (-1,), window=2, global_blocks=range(backbone.depth))[0]
    assert_close(everywhere, backbone.maps(x, (-1,), window=5)[0])
    assert_close(everywhere, backbone.maps(x, (-1,), window=99)[0])
    if not backbone.leading:
        assert_close(everywhere, backbone.maps(x, (-1,))[0])
    assert not torch.allclose(everywhere, backbone.maps(x, (-1,), window=2)[0])


def test_windows_as_large_as_the_pre_training_grid_get_the_pre_trained_bias() -> None:
    """Bit for bit, and in spite of the copy's larger images."""
    torch.manual_seed(0)
    backbone: Any = ours(**BEIT, cls_token=False).double().eval()
    for table in backbone.rel_pos:
        nn.init.normal_(table.relative_position_bias_table)
    copy = backbone.rebuilt(image_size=40)
    assert torch.equal(copy.placing(False)(0, Windows((10, 10), 5)), backbone.position_bias())


def test_maps_and_attention_are_computed_where_the_backbone_is(
    backbone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device without memory, where whatever was made on the CPU is refused."""
    monkeypatch.setattr(torch, "autocast", lambda *given, **options: nullcontext())  # has none for meta
    copy = backbone.rebuilt(image_size=7 * backbone.patch_size, drop_path=0.1).to("meta").train()
    x, keys = images(copy, grid=7).to("meta"), torch.tensor([1, 2], device="meta")
    for window in (None, 3, 5):
        maps = copy.maps(x, (-1,), window=window, global_blocks=(0,), keys=keys)
        assert maps[0].device.type == "meta"
        assert maps[0].shape[2:] == (7, 7)
    assert copy.attentions(x, (-1,))[0].device.type == "meta"


def test_windows_come_apart_and_together_again() -> None:
    x = torch.arange(2 * 3 * 5, dtype=torch.float32).view(2, 15, 1) + 1
    windows = Windows((3, 5), 2)
    parts = windows.split(x)
    assert parts.shape == (2 * 2 * 3, 4, 1)
    assert parts[0, :, 0].tolist() == [1, 2, 6, 7]
    assert parts[5, :, 0].tolist() == [15, 0, 0, 0]
    assert torch.equal(windows.join(parts), x)


def test_what_cannot_be_asked_of_maps_is_a_sentence(backbone: Any, pixels: Any) -> None:
    for one in (backbone, pixels):
        with pytest.raises(UserError, match="takes images of shape"):
            one.maps(images(one, grid=6), (-1,))
        for layers in ((0,), (-one.depth - 1,), ()):
            with pytest.raises(UserError, match="layers count from the end"):
                one.maps(images(one), layers)
    with pytest.raises(UserError, match="at least 1 patch wide"):
        backbone.maps(images(backbone), (-1,), window=0)
    with pytest.raises(UserError, match="global blocks count"):
        backbone.maps(images(backbone), (-1,), window=2, global_blocks=(backbone.depth,))


def test_dropout_leaves_out_neither_bias_nor_windows() -> None:
    torch.manual_seed(0)
    backbone: Any = in_double(with_tokens(rel_pos="shared")).eval()
    nn.init.normal_(backbone.rel_pos[0].relative_position_bias_table)
    x, windows = torch.randn(2, 25, 24, dtype=torch.float64), Windows((5, 5), 3)
    place = backbone.placing(False)(0, windows)
    without = backbone.run_block(0, x, place, None, None, windows)
    hardly = run_dropping_block(backbone.blocks[0], x, 1e-12, None, "test", None, place, windows)
    assert_close(hardly, without, 1e-9)


# Attention --------------------------------------------------------------------------------------------


def test_attention_is_what_the_blocks_mix_values_by(backbone: Any) -> None:
    x, mixed, given = images(backbone), {}, {}
    handles = []
    for i, block in enumerate(backbone.blocks):
        handles.append(block.attn.register_forward_hook(lambda m, a, out, i=i: mixed.update({i: out})))
        handles.append(block.attn.register_forward_pre_hook(lambda m, a, i=i: given.update({i: a[0]})))
    backbone.encode(x)
    for handle in handles:
        handle.remove()
    layers = tuple(range(-backbone.depth, 0))
    for i, probabilities in enumerate(backbone.attentions(x, layers)):
        assert probabilities.shape == (2, backbone.num_heads, *(backbone.leading + 25,) * 2)
        assert_close(probabilities.sum(-1), torch.ones_like(probabilities[..., 0]))
        attn = backbone.blocks[i].attn
        v = attn.v(given[i]) if isinstance(backbone, RopeViT) else attn.qkv(given[i]).chunk(3, dim=-1)[2]
        v = v.unflatten(2, (backbone.num_heads, -1)).transpose(1, 2)
        assert_close(attn.proj((probabilities @ v).transpose(1, 2).flatten(2)), mixed[i])


def test_an_encoder_gives_attention_of_any_layer_and_pixels_none(backbone: Any, pixels: Any) -> None:
    encoder = Encoder(backbone.float(), (0, 0, 0), (1, 1, 1))
    x = images(backbone).float()
    (last,) = encoder.attentions(x)
    assert torch.equal(last, backbone.attentions(x, (-1,))[0])
    torch.testing.assert_close(last, backbone.encode(x, attention=True).attention)
    with pytest.raises(UserError, match="raw pixels have no attention"):
        Encoder(pixels, (0, 0, 0), (1, 1, 1)).attentions(torch.rand(1, 3, 20, 20))
