"""EVA."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from method_zoo.eva import EVA
from mimbench.method import Losses

from ..adapter import Adapter, Config, Rules, assert_same_output, vit
from ..records import Official
from ._shared import GivenTeacher, beit_encoder_rules, beit_options


def _build(config: Config) -> EVA:
    relative = config["use_rel_pos_bias"] or config["use_shared_rel_pos_bias"]
    options = beit_options(config) | ({} if relative else {"rel_pos": "none"})
    backbone = vit(config, **{**EVA.card.backbone, **options})
    return EVA(backbone, teacher=GivenTeacher(config["predict_feature_dim"]))


def _float32_attention(
    attn: nn.Module, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    """Attention whose queries and keys are rounded to float32: EVA's ``qk_float``."""
    q, k, v = attn.qkv(x).unflatten(2, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    scores = (q * q.shape[-1] ** -0.5).float() @ k.float().transpose(-2, -1)
    return attn.proj((scores.softmax(-1).to(x.dtype) @ v).transpose(1, 2).flatten(2))


def _losses(method: EVA, run: Official) -> Losses:
    if run.case == "golden":  # the full record was made with it, the figures without
        for block in method.encoder.blocks:
            block.attn.forward = partial(_float32_attention, block.attn)
    return method.losses(run.inputs["img"], run.inputs["mask"].bool(), run.inputs["teacher"])


def _rules(config: Config) -> Rules:
    return [*beit_encoder_rules(config, "model/"), (r"head\.", "model/lm_head.")]


def _check_prediction(method: EVA, run: Official) -> None:
    mask = run.inputs["mask"].bool()
    encoded = method.encoder.encode(run.inputs["img"], mask, fill="token")
    assert_same_output(method.head(encoded.patches[mask]), run.outputs["pred"])


ADAPTER = Adapter(build=_build, losses=_losses, rules=_rules, check=_check_prediction)
