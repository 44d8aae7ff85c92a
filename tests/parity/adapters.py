"""How an official run is repeated with our classes.

A method that joins the zoo adds its key map to ``keymaps.py``, one ``Adapter`` here and its figures under
``figures/<key>/``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from method_zoo.backbones import build
from method_zoo.beit import BEiT
from method_zoo.hpm import HPM
from method_zoo.mae import MAE
from method_zoo.parts.masking import mask_from_scores
from method_zoo.simmim import SimMIM
from mimbench.method import Losses, Method

from . import keymaps
from .records import Official

Config = dict[str, Any]


def _always(config: Config) -> None:
    return None


@dataclass(frozen=True)
class Adapter:
    """One method's way from an official run to ours.

    build: our method in the official configuration.
    losses: our losses on the official inputs and draws.
    rules: our parameter names to official ones.
    unused: official state that ours computes by itself or has no use for, a regular expression.
    parts: our loss terms and their official names.
    check: what else the record can tell.
    unsupported: why a configuration cannot be built, None where it can.
    """

    build: Callable[[Config], Method]
    losses: Callable[[Any, Official], Losses]
    rules: Callable[[Config], keymaps.Rules]
    unused: str = r"(?!)"
    parts: dict[str, str] = field(default_factory=dict)
    check: Callable[[Any, Official], None] = lambda method, run: None
    unsupported: Callable[[Config], str | None] = _always

    def load(self, method: Method, run: Official) -> dict[str, str]:
        """Set every parameter of ``method`` from the record; returns our names -> official ones.

        Every official parameter must be used exactly once and every one of ours be set.
        """
        parameters = dict(method.named_parameters())
        rules = self.rules(run.config)
        names = {ours: keymaps.rename(ours, rules) for ours in parameters}
        wanted = [name for name in run.state if not re.search(self.unused, name)]
        assert sorted(names.values()) == sorted(wanted)
        with torch.no_grad():
            for ours, parameter in parameters.items():
                parameter.copy_(run.state[names[ours]].reshape(parameter.shape))
        return names


def assert_same_output(ours: Tensor, official: Any) -> None:
    """Compare an intermediate tensor with the one held (in float32) or with its statistics."""
    if isinstance(official, Tensor):
        torch.testing.assert_close(ours, official.to(ours.dtype), rtol=1e-6, atol=1e-6)
        return
    assert list(ours.shape) == official["shape"]
    found = torch.stack([ours.mean(), ours.std(correction=0), ours.norm(), *ours.flatten()[:4]])
    expected = [official["mean"], official["std"], official["l2"], *official["first"]]
    torch.testing.assert_close(found.tolist(), expected, rtol=1e-9, atol=1e-9)


def _vit(config: Config, **options: Any) -> nn.Module:
    sizes = {name: config[name] for name in ("embed_dim", "depth", "num_heads", "mlp_ratio")}
    return build(f"vit_base_patch{config['patch_size']}", config["img_size"], **{**options, **sizes})


def _autoencoder_settings(config: Config) -> dict[str, Any]:
    return {
        "mask_ratio": config["mask_ratio"],
        "norm_pix": config["norm_pix_loss"],
        "decoder_dim": config["decoder_embed_dim"],
        "decoder_depth": config["decoder_depth"],
        "decoder_heads": config["decoder_num_heads"],
    }


def _build_mae(config: Config) -> MAE:
    return MAE(_vit(config, **MAE.card.backbone), **_autoencoder_settings(config))


def _mae_losses(method: MAE, run: Official) -> Losses:
    (noise,) = run.draws  # the official code keeps the patches of the smallest noise
    mask = mask_from_scores(noise, method.masking.hidden_cells(method.encoder.grid))
    if isinstance(held := run.outputs.get("mask"), Tensor):
        assert torch.equal(mask, held.bool())
    return method.losses(run.inputs["img"], mask)


def _build_hpm(config: Config) -> HPM:
    backbone = _vit(config, **HPM.card.backbone)
    return HPM(backbone, relative=config["relative"], **_autoencoder_settings(config))


def _hpm_losses(method: HPM, run: Official) -> Losses:
    return method.losses(run.inputs["img"], run.outputs["mask"].bool())


def _check_hpm_teacher(method: HPM, run: Official) -> None:
    """The teacher expects the official losses, and the official mask hides what it finds hardest."""
    difficulty = method.predicted_difficulty(run.inputs["img"])
    assert_same_output(difficulty, run.outputs["teacher_loss_pred"])
    progress = (run.config["epoch"] + 1) / run.config["total_epoch"]
    ours = method.mask(difficulty, torch.arange(len(difficulty)), progress)
    theirs = run.outputs["mask"].bool()
    assert torch.equal(ours.sum(1), theirs.sum(1))
    hardest = mask_from_scores(difficulty, int(int(ours[0].sum()) * 0.5 * progress))
    assert ours[hardest].all()
    assert theirs[hardest].all()


def _beit_options(config: Config) -> dict[str, Any]:
    return {
        "positions": "learned" if config["use_abs_pos_emb"] else "none",
        "rel_pos": "per_block" if config["use_rel_pos_bias"] else "shared",
        "layer_scale": config["init_values"],
    }


class _Vocabulary(nn.Module):
    """Where a tokenizer would be: an official run's tokens are given."""

    def __init__(self, vocabulary: int):
        super().__init__()
        self.vocabulary = vocabulary


def _build_beit(config: Config) -> BEiT:
    backbone = _vit(config, **{**BEiT.card.backbone, **_beit_options(config)})
    return BEiT(backbone, tokenizer=_Vocabulary(config["vocab_size"]))


def _beit_losses(method: BEiT, run: Official) -> Losses:
    return method.losses(run.inputs["img"], run.inputs["mask"].bool(), run.inputs["token_ids"])


def _build_simmim(config: Config) -> SimMIM:
    unit = config["mask_patch_size"] // config["patch_size"]
    backbone = _vit(config, **{**SimMIM.card.backbone, **_beit_options(config)})
    return SimMIM(backbone, mask_ratio=config["mask_ratio"], mask_unit=unit)


def _simmim_losses(method: SimMIM, run: Official) -> Losses:
    mask = run.inputs["mask"].bool().flatten(1)
    ours = method.masking(torch.arange(len(mask)), method.encoder.grid)
    assert torch.equal(ours.sum(1), mask.sum(1))
    return method.losses(run.inputs["img"], mask)


ADAPTERS: dict[str, Adapter] = {
    "mae": Adapter(
        build=_build_mae,
        losses=_mae_losses,
        rules=keymaps.mae,
        unused=r"pos_embed$",  # fixed tables
    ),
    "hpm": Adapter(
        build=_build_hpm,
        losses=_hpm_losses,
        rules=keymaps.hpm,
        # Fixed tables; the average of the pixel decoder, which nothing reads.
        unused=r"pos_embed$|^ema/decoder_(blocks|norm|pred)\.",
        parts={"reconstruction": "loss_rec", "difficulty": "loss_learn"},
        check=_check_hpm_teacher,
    ),
    "beit": Adapter(
        build=_build_beit,
        losses=_beit_losses,
        rules=keymaps.beit,
        unused=r"relative_position_index$",
    ),
    "simmim": Adapter(
        build=_build_simmim,
        losses=_simmim_losses,
        rules=keymaps.simmim,
        unused=r"relative_position_index$",
        unsupported=lambda config: "the zoo has no Swin backbone yet" if "depths" in config else None,
    ),
}
