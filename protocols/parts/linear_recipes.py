"""The linear probes of papers, as fields of the protocol ``linprobe``, with what their reproduction lacks.

What all of them share and no file of theirs has: one crop definition (torchvision's, ten tries, where MAE
and those built on it draw once), biases that start at zero, decay for weights only, cosines that fall with
each update, batches that run on over the end of an epoch, and smaller batches at the same learning rates
where a set is so small that a recipe for a million images would leave few updates.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Literal

from mimbench.protocol import Preset

Statistics = Literal["train", "running"]

MIN_STEPS = 1000  # on sets far smaller than ImageNet; on ImageNet every recipe has more

_COMMON = (
    " Here: torchvision's random resized crop (ten tries), biases start at zero, weight decay spares them, "
    "the cosine falls with each update; batches shrink, rates do not, on sets that would leave fewer than "
    f"{MIN_STEPS} updates."
)
_MOCO_V3_HEAD: dict[str, Any] = {
    "readouts": ("cls",),
    "batch_norm": (True,),
    "statistics": "running",
    "init_std": 0.01,
    "augment": "crop",
    "choose_on": "test",
    "min_steps": MIN_STEPS,
}
_WHOLE_BATCH = " Batch norm sees the whole batch, not one GPU's 512."
_DINO_HEAD: dict[str, Any] = {
    "batch_norm": (False,),
    "init_std": 0.01,
    "epochs": 100,
    "batch_size": 1024,
    "checkpoints": 100,
    "choose_on": "test",
    "min_steps": MIN_STEPS,
}


def _recipe(source: str, **fields: Any) -> Preset:
    return Preset(MappingProxyType(fields), source + _COMMON)


RECIPES = MappingProxyType(
    {
        "mae": _recipe(
            "facebookresearch/mae main_linprobe.py, FINETUNE.md and arXiv:2111.06377 A.1: class token after "
            "the final norm, batch norm without affine map, LARS 0.1 per 256 at batch 16384, 90 epochs with "
            "10 of warm-up (ViT-B; 50 for L and H), best epoch on the test images." + _WHOLE_BATCH,
            **_MOCO_V3_HEAD,
            optimizer="lars",
            lr=(0.1,),
            batch_size=16384,
            epochs=90,
            warmup=10 / 90,
            checkpoints=90,
        ),
        "beit": _recipe(
            "microsoft/unilm beit/run_linear_eval.py and its guide: a head on each block's class token and "
            "patch mean, without the final norm; AdamW 4e-3 at batch 1024 (1e-3 per 256), decay 1e-4, 100 "
            "epochs, cosine, best block and epoch on the test images.",
            **_DINO_HEAD,
            readouts=("cls+mean@every/raw",),
            optimizer="adamw",
            lr=(0.001,),
            weight_decay=(1e-4,),
            augment="crop-bilinear",
        ),
        "hpm": _recipe(
            "Haochen-Wang409/HPM main_linprob.py and scripts/linprob.sh: MAE's head under SGD 1e-3 per 256 "
            "at batch 2048, 100 epochs with 10 of warm-up, best epoch on the test images (theirs drop the "
            "last incomplete batch of them)." + _WHOLE_BATCH,
            **_MOCO_V3_HEAD,
            optimizer="sgd",
            lr=(0.001,),
            batch_size=2048,
            epochs=100,
            warmup=0.1,
            checkpoints=100,
        ),
        "dino": _recipe(
            "facebookresearch/dino eval_linear.py for ViT-S: class tokens of the last four blocks, SGD 1e-3 "
            "per 256 at batch 1024, 100 epochs, best epoch on the test images.",
            **_DINO_HEAD,
            readouts=("cls@last4",),
            lr=(0.001,),
            augment="crop-bilinear",
        ),
        "dino-base": _recipe(
            "facebookresearch/dino eval_linear.py for ViT-B (--n_last_blocks 1 --avgpool_patchtokens true): "
            "class token and patch mean of the last block, otherwise as for ViT-S.",
            **_DINO_HEAD,
            readouts=("cls+mean",),
            lr=(0.001,),
            augment="crop-bilinear",
        ),
        "ibot": _recipe(
            "bytedance/ibot evaluation/eval_linear_multi.py for ViT-B and L (--avgpool_patchtokens 2, "
            "--sweep_lr_only): class token and patch mean of the last block, SGD, 45 learning rates per 256, "
            "batch 1024, 100 epochs, best head and epoch on the test images.",
            **_DINO_HEAD,
            readouts=("cls+mean",),
            lr=tuple(float(f"{n}e{k}") for k in range(-4, 1) for n in range(1, 10)),
            augment="crop-bilinear",
        ),
        "ibot-small": _recipe(
            "bytedance/ibot evaluation/eval_linear_multi.py for ViT-S (--n_last_blocks 4, --sweep_lr_only): "
            "class tokens of the last four blocks, otherwise as for ViT-B.",
            **_DINO_HEAD,
            readouts=("cls@last4",),
            lr=tuple(float(f"{n}e{k}") for k in range(-4, 1) for n in range(1, 10)),
            augment="crop-bilinear",
        ),
        "dinov2": _recipe(
            "facebookresearch/dinov2 dinov2/eval/linear.py: class tokens of the last or the last four "
            "blocks, with or without the last patch mean, 13 learning rates per 256, SGD, 12500 updates of "
            "1024 (9.99 epochs of ImageNet), the best of the 52 heads on the test images.",
            readouts=("cls", "cls+mean", "cls@last4", "cls@last4&mean"),
            batch_norm=(False,),
            lr=(1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1),
            init_std=0.01,
            batch_size=1024,
            epochs=9.99,
            min_steps=MIN_STEPS,
            augment="crop",
            choose_on="test",
        ),
        "capi": _recipe(
            "facebookresearch/capi eval_classification.py and default_eval_config.yaml: class token, patch "
            "mean and both, 10 learning rates per 256 and 3 weight decays, AdamW (0.9, 0.95), 12500 updates "
            "with a tenth of warm-up, chosen on held-out training images. Theirs reports the best of each "
            "readout, here it is the best of all; the number of GPUs of 128 images each is taken to be 8.",
            readouts=("cls", "mean", "cls+mean"),
            batch_norm=(False,),
            optimizer="adamw",
            beta2=0.95,
            lr=(1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2),
            weight_decay=(5e-4, 1e-3, 5e-2),
            init_std=0.02,
            batch_size=1024,
            epochs=11.1,
            warmup=0.1,
            min_steps=MIN_STEPS,
            augment="crop",
        ),
        "ijepa": _recipe(
            "arXiv:2301.08243 A.2 (VISSL, whose code for it is not public): patch mean of the last block or "
            "of the last four side by side, with and without batch norm, LARS at batch 16384, 50 epochs with "
            "tenfold drops after each 15, learning rates 0.01, 0.05, 0.001 and weight decay 5e-4 or 0. The "
            "paper does not say on what images the best is chosen (test is taken), nor for what batch the "
            "rates are meant (256 is taken, VISSL's habit); LARS is MoCo v3's, VISSL's also adapts biases.",
            readouts=("mean", "mean@last4"),
            batch_norm=(False, True),
            statistics="running",
            optimizer="lars",
            lr=(0.001, 0.01, 0.05),
            weight_decay=(0.0, 5e-4),
            init_std=0.01,
            batch_size=16384,
            epochs=50,
            milestones=(0.3, 0.6, 0.9),
            min_steps=MIN_STEPS,
            augment="crop",
            choose_on="test",
        ),
    }
)
