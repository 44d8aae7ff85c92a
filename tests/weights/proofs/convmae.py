"""ConvMAE's layout: against its encoder written anew, which gives the official predictions under a mask."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mimbench.weights.entry import Entry
from tests.weights.proof import Proof, figure, images_of, part, record, small

from ._pyramids import (
    State,
    block,
    block_shapes,
    decoded,
    filled,
    gathered,
    linear,
    norm,
    randomised,
    shown,
)
from .ijepa import sincos


def channels(state: State, name: str, x: Tensor) -> Tensor:
    """A norm of each place's channels; its epsilon is torch's."""
    return norm(state, name, x.movedim(1, -1), 1e-5).movedim(-1, 1)


def conv(state: State, name: str, x: Tensor, **options: int) -> Tensor:
    return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], **options)


def encoded(state: State, images: Tensor, config: dict, mask: Tensor | None = None) -> Tensor:
    """The whole image's tokens as ``models_convvit.ConvViT`` pools them, else pre-training's latent."""
    x, skips = images, []
    for stage, side in ((1, 4), (2, 2)):
        x = F.gelu(
            channels(
                state, f"patch_embed{stage}.norm", conv(state, f"patch_embed{stage}.proj", x, stride=side)
            )
        )
        seen = torch.ones_like(x[:, :1])
        if mask is not None:
            repeat = x.shape[-1] // 14
            seen = (
                (1 - mask.double())
                .view(-1, 1, 14, 14)
                .repeat_interleave(repeat, 2)
                .repeat_interleave(repeat, 3)
            )
        for i in range(config["depth"][stage - 1]):
            name = f"blocks{stage}.{i}"
            y = seen * conv(state, f"{name}.conv1", channels(state, f"{name}.norm1", x))
            y = conv(state, f"{name}.attn", y, padding=2, groups=y.shape[1])
            x = x + conv(state, f"{name}.conv2", y)
            y = conv(state, f"{name}.mlp.fc1", channels(state, f"{name}.norm2", x))
            x = x + conv(state, f"{name}.mlp.fc2", F.gelu(y))
        if mask is not None:
            skips.append(conv(state, f"stage{stage}_output_decode", x, stride=8 // 2**stage))
    x = F.gelu(channels(state, "patch_embed3.norm", conv(state, "patch_embed3.proj", x, stride=2)))
    x = linear(state, "patch_embed4", x.flatten(2).mT) + state["pos_embed"]
    if mask is not None:
        x = gathered(x, shown(mask))
    for i in range(config["depth"][2]):
        x = block(state, f"blocks3.{i}", x, config["num_heads"])
    if mask is None:
        return x
    return norm(state, "norm", x + sum(gathered(skip.flatten(2).mT, shown(mask)) for skip in skips))


def entry_of(name: str, config: dict) -> Entry:
    sizes = {
        "embed_dim": config["embed_dim"][2],
        "stem_dims": config["embed_dim"][:2],
        "stem_depth": config["depth"][0],
        "depth": config["depth"][2],
        "num_heads": config["num_heads"],
        "mlp_ratio": config["mlp_ratio"][2],
        "stem_mlp_ratio": config["mlp_ratio"][0],
    }
    return small(name, image_size=config["img_size"][0], options=sizes)


def of_record() -> Proof:
    run = record("convmae", "")
    state, config, mask, images = part(run, "model"), run.config, run.outputs["mask"], run.inputs["img"]
    x = linear(state, "decoder_embed", encoded(state, images, config, mask))
    x = filled(x, shown(mask), state["mask_token"][0], 196) + state["decoder_pos_embed"]
    predicted = decoded(state, x, config["decoder_num_heads"])[:, :8]
    torch.testing.assert_close(predicted, run.outputs["pred_first8"].double(), rtol=1e-6, atol=1e-6)
    return proof(state, images, config)


def proof(state: State, images: Tensor, config: dict, name: str = "convmae@convmae_base") -> Proof:
    tokens = encoded(state, images, config)
    entry = entry_of(name, config)
    said = "ConvViT of the official code, written anew"
    return Proof(entry, {"model": dict(state)}, images, None, tokens, said)


def dmjd() -> Proof:
    """All names of DMJD's file: a run of its code, weights drawn anew, with its fixed tables."""
    run = figure("dmjd", "block_s20")
    state = randomised(part(run, "model"), fixed="(none)")
    state["pos_embed"] = sincos(run.config["embed_dim"][2], 14)
    state["decoder_pos_embed"] = sincos(run.config["decoder_embed_dim"], 14)
    return proof(state, run.inputs["img"], run.config, "dmjd@convmae_base")


def wide_stem() -> Proof:
    """MLPs of the stages wider than the transformer's, as DMJD's are, and more than one block in each."""
    config = {
        "img_size": [224],
        "embed_dim": [8, 12, 24],
        "depth": [2, 2, 3],
        "num_heads": 3,
        "mlp_ratio": [4, 4, 2],
    }
    shapes = {"patch_embed4.weight": (24, 24), "patch_embed4.bias": (24,)}
    widths = (3, *config["embed_dim"])
    for i, side in enumerate((4, 2, 2)):
        shapes |= {f"patch_embed{i + 1}.proj.weight": (widths[i + 1], widths[i], side, side)}
        shapes |= {
            f"patch_embed{i + 1}.{name}": (widths[i + 1],)
            for name in ("proj.bias", "norm.weight", "norm.bias")
        }
    for stage in (1, 2):
        dim = widths[stage]
        for i in range(2):
            name = f"blocks{stage}.{i}"
            shapes |= {
                f"{name}.{n}.{part}": (dim,) for n in ("norm1", "norm2") for part in ("weight", "bias")
            }
            shapes |= {f"{name}.{n}.weight": (dim, dim, 1, 1) for n in ("conv1", "conv2")}
            shapes |= {f"{name}.{n}.bias": (dim,) for n in ("conv1", "conv2", "attn", "mlp.fc2")}
            shapes |= {f"{name}.attn.weight": (dim, 1, 5, 5), f"{name}.mlp.fc1.bias": (4 * dim,)}
            shapes |= {f"{name}.mlp.fc1.weight": (4 * dim, dim, 1, 1)}
            shapes |= {f"{name}.mlp.fc2.weight": (dim, 4 * dim, 1, 1)}
    for i in range(3):
        shapes |= block_shapes(f"blocks3.{i}", 24, 48)
    state = randomised({name: torch.empty(shape) for name, shape in shapes.items()})
    state["pos_embed"] = sincos(24, 14)
    return proof(state, images_of(224), config)


PROOFS = {"convmae": of_record, "dmjd": dmjd, "wide stem": wide_stem}
