"""SimMIM's layout: against timm's BEiT on whole images, of each part that an encoder is.

``test_official_predictions`` compares with the official code under a mask.
"""

from __future__ import annotations

from tests.weights.proof import Proof

from ._beit import SIZES, beit, index, noise, whole_images

WIDTH = SIZES["embed_dim"]


def simmim() -> Proof:
    model = beit()
    state = model.state_dict() | {"rel_pos_bias.relative_position_index": index()}
    state = {f"encoder.{name}": value for name, value in {**state, "mask_token": noise(1, 1, WIDTH)}.items()}
    state |= {"decoder.0.weight": noise(768, WIDTH, 1, 1), "decoder.0.bias": noise(768)}
    return whole_images("simmim@vit_base", model, {"model": state})


def frequencies() -> Proof:
    """MFM's: learned positions, neither layer scale nor relative positions nor a mask token."""
    model = beit(use_abs_pos_emb=True, use_shared_rel_pos_bias=False, init_values=None)
    state = {f"encoder.{name}": value for name, value in model.state_dict().items()}
    state |= {"decoder.0.weight": noise(768, WIDTH, 1, 1), "decoder.0.bias": noise(768)}
    return whole_images("mfm@vit_base", model, {"model": state})


def distilled() -> Proof:
    """A file of feature distillation with the teacher inside, of the same names as the student."""
    model, teacher = beit(), beit().state_dict()
    state = {f"encoder.{name}": value for name, value in model.state_dict().items()}
    state |= {f"feature_model.{name}": value + 1 for name, value in teacher.items()}
    state |= {"decoder.0.weight": noise(40, WIDTH, 1), "decoder.0.bias": noise(40)}
    return whole_images("fd@vit_base-clip", model, {"model": state})


def wrapped() -> Proof:
    """A student as DistributedDataParallel names it."""
    model = beit()
    state = model.state_dict() | {"mask_token": noise(1, 1, WIDTH)}
    state |= {"rel_pos_bias.relative_position_index": index()}
    state = {f"module.student.{name}": value for name, value in state.items()}
    state |= {"module.distill_head.weight": noise(40, WIDTH), "module.distill_head.bias": noise(40)}
    return whole_images("maskdistill@vit_base-unofficial", model, {"model": state})


PROOFS = {"SimMIM": simmim, "MFM": frequencies, "with a teacher": distilled, "wrapped": wrapped}
