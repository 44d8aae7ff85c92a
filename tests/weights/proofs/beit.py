"""BEiT's layout: against timm's BEiT on whole images, of each file that differs from the others."""

from __future__ import annotations

from tests.weights.proof import Proof

from ._beit import SIZES, beit, index, noise, whole_images

WIDTH = SIZES["embed_dim"]


def _head(vocabulary: int = 7) -> dict:
    return {
        "mask_token": noise(1, 1, WIDTH),
        "lm_head.weight": noise(vocabulary, WIDTH),
        "lm_head.bias": noise(vocabulary),
    }


def pre_trained() -> Proof:
    model = beit()
    shared = {"rel_pos_bias.relative_position_index": index()}
    return whole_images("beit@vit_base", model, {"model": model.state_dict() | shared | _head()})


def absolute_positions() -> Proof:
    model = beit(use_abs_pos_emb=True, use_shared_rel_pos_bias=False, init_values=None)
    return whole_images("beit@vit_base-pt1k", model, {"model": model.state_dict() | _head()})


def fine_tuned() -> Proof:
    model = beit(fine_tuned=True)
    buffers = {f"blocks.{i}.attn.relative_position_index": index() for i in range(SIZES["depth"])}
    return whole_images("beit@vit_base-ft22k", model, {"model": model.state_dict() | buffers})


def second_version() -> Proof:
    """With the two blocks and the norm of its second head, saved by deepspeed."""
    model = beit()
    state = model.state_dict()
    head = {
        name.replace("blocks", "cls_pt_layers"): noise(*tensor.shape)
        for name, tensor in state.items()
        if name.startswith(("blocks.0.", "blocks.1."))
    }
    head |= {f"cls_pt_norm.{part}": noise(WIDTH) for part in ("weight", "bias")}
    head |= {f"cls_pt_lm_{name.removeprefix('lm_')}": v for name, v in _head().items() if "lm_" in name}
    shared = {"rel_pos_bias.relative_position_index": index()}
    return whole_images("beitv2@vit_base", model, {"module": state | shared | _head() | head})


PROOFS = {
    "pre-trained": pre_trained,
    "absolute positions": absolute_positions,
    "fine-tuned": fine_tuned,
    "second version": second_version,
}
