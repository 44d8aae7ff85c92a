"""Official networks that give more than tokens: with their own heads behind our tokens, their very outputs.

The states are those of the records, under the names that the official codes gave; needs MIMBENCH_PARITY.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mimbench.encoder import Encoded

from .proof import Proof, convert_proof, part, record, small

State = dict[str, Tensor]


def _encoded(name: str, config: Any, content: Any, images: Tensor, folder: Path) -> Encoded:
    """What our encoder of an official file gives for whole images."""
    sizes = {key: config[key] for key in ("embed_dim", "depth", "num_heads", "mlp_ratio")}
    entry = small(
        name,
        backbone=f"vit_small_patch{config['patch_size']}",
        image_size=config["img_size"][0],
        options=sizes,
    )
    encoder = convert_proof(Proof(entry, content, images, None, images, ""), folder)
    with torch.no_grad():
        return encoder.backbone.double().encode(images)


def _linear(state: State, name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def _same(ours: Tensor, official: Any) -> None:
    torch.testing.assert_close(ours, official.double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shared", [0, 1])
@pytest.mark.parametrize("network", ["teacher", "student"])
def test_ibot_s_logits(network: str, shared: int, tmp_path: Path) -> None:
    run = record("ibot", f"shared{shared}")
    state = part(run, network)
    images = torch.cat(run.inputs["images"][:2])
    kept = state if network == "teacher" else {f"module.{name}": value for name, value in state.items()}
    content = {"teacher": kept, "epoch": 1}
    out = _encoded("ibot@vit_small", run.config, content, images, tmp_path)
    logits = _ibot_head(state, torch.cat([out.cls.unsqueeze(1), out.patches], dim=1))
    if network == "teacher":  # the student saw masked images
        _same(logits[0], run.outputs["teacher_cls"])
        _same(logits[1], run.outputs["teacher_patch"])
    else:
        shown = ~torch.cat(run.inputs["masks"]).bool().flatten(1).any(1)  # images without a hidden patch
        assert shown.any()
        _same(logits[0][shown], run.outputs["student_cls"][shown])
        _same(logits[1][shown], run.outputs["student_patch"][shown])


def _ibot_head(state: State, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of the class token [B, K] and of the patches [B, N, K']."""
    for layer in ("head.mlp.0", "head.mlp.2"):
        tokens = F.gelu(_linear(state, layer, tokens))
    tokens = F.normalize(_linear(state, "head.mlp.4", tokens), dim=-1)

    def last(name: str, x: Tensor) -> Tensor:
        weight = state[f"head.{name}.weight_v"]
        return x @ (state[f"head.{name}.weight_g"] * weight / weight.norm(dim=1, keepdim=True)).T

    return last("last_layer", tokens[:, 0]), last("last_layer2", tokens[:, 1:])


@pytest.mark.parametrize("case", ["nenc1", "nenc2"])
def test_ijepa_s_targets_are_of_the_target_encoder(case: str, tmp_path: Path) -> None:
    run = record("ijepa", case)
    content = {
        ours: {f"module.{name}": value for name, value in part(run, theirs).items()}
        for ours, theirs in (("encoder", "encoder"), ("target_encoder", "target"), ("predictor", "predictor"))
    }
    images = run.inputs["img"]
    config = run.config["encoder"]
    out = _encoded("ijepa@vit_huge_patch14", config, content, images, tmp_path)
    places = run.inputs["masks_pred"]
    normed = F.layer_norm(out.patches, out.patches.shape[-1:])
    targets = [normed.gather(1, index.unsqueeze(-1).expand(-1, -1, normed.shape[-1])) for index in places]
    contexts = len(run.inputs["masks_enc"])
    ours = torch.cat([target for target in targets for _ in range(contexts)])
    _same(ours, run.outputs["target"])


@pytest.mark.parametrize("case", ["sink0_ent0", "sink1_ent1"])
def test_msn_s_targets_are_of_the_target_encoder(case: str, tmp_path: Path) -> None:
    run = record("msn", case)
    content = {
        ours: {f"module.{name}": value for name, value in part(run, theirs).items()}
        for ours, theirs in (("encoder", "encoder"), ("target_encoder", "target"))
    }
    images, state = run.inputs["imgs"][0], part(run, "target")
    x = _encoded("msn@vit_small", run.config, content, images, tmp_path).cls
    for i in (1, 2):
        x = _linear(state, f"fc.fc{i}", x)
        gain, bias = state[f"fc.bn{i}.weight"], state[f"fc.bn{i}.bias"]
        x = F.gelu(F.batch_norm(x, None, None, gain, bias, training=True))  # in train mode in the code
    _same(_linear(state, "fc.fc3", x), run.outputs["target"])
