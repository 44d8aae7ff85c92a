"""The attentive probes of papers, as fields of the protocol ``attentive``, and what theirs differ in."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from mimbench.protocol import Preset

MIN_STEPS = 1000  # on sets far smaller than ImageNet; on ImageNet every recipe has more

_COMMON = (
    " Here: torchvision's random resized crop; the bias of the keys, which the softmax cancels, is left "
    "out; the rate changes with each update; one head for each 64 features where theirs follows the "
    f"backbone; batches shrink, rates do not, on sets that would leave fewer than {MIN_STEPS} updates."
)


def _recipe(source: str, **fields: Any) -> Preset:
    return Preset(MappingProxyType({"min_steps": MIN_STEPS, "layers": (1.0,), **fields}), source + _COMMON)


RECIPES = MappingProxyType(
    {
        "capi": _recipe(
            "facebookresearch/capi eval_classification.py and default_eval_config.yaml (AttnPoolClassifier): "
            "one query, keys and values of the patch tokens; 10 learning rates per 256 and 3 weight decays, "
            "AdamW (0.9, 0.95), 12500 updates with a tenth of warm-up, chosen on held-out training images. "
            "The number of GPUs of 128 images each is taken to be 8.",
            pooling=("capi",),
            lr=(1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2),
            weight_decay=(5e-4, 1e-3, 5e-2),
            batch_size=1024,
            epochs=11.1,
            augment="crop",
        ),
        "vjepa": _recipe(
            "facebookresearch/jepa evals/image_classification_frozen and configs/evals/vitl16_in1k.yaml: a "
            "cross-attention block with one query on the patch tokens, AdamW 1e-3 at batch 1024 (2.5e-4 per "
            "256), 20 epochs, half a cosine to 0 without warm-up, gradients clipped to a norm of 1. Theirs "
            "lets weight decay fall from 1e-3 to 1e-6 (here it stays 1e-3), and adds timm's AutoAugment "
            "'original' and random erasing to the crops. It reports the last epoch.",
            pooling=("vjepa",),
            lr=(2.5e-4,),
            weight_decay=(1e-3,),
            beta2=0.999,
            warmup=0.0,
            clip_grad=1.0,
            batch_size=1024,
            epochs=20,
            augment="crop",
        ),
        "cae": _recipe(
            "Atten4Vis/CAE tools/run_attentive.py, models/modeling_finetune.py and scripts/cae_base_800e.sh: "
            "cross-attention with norms of query, keys and values over all tokens, batch norm without affine "
            "map, SGD 0.4 at batch 8192 (0.0125 per 256), 90 epochs with 10 of warm-up, best epoch on the "
            "test images. Batch norm sees the whole batch, not one GPU's 256; its eps is MAE's.",
            pooling=("cae",),
            tokens="all",
            optimizer="sgd",
            lr=(0.0125,),
            weight_decay=(0.0,),
            warmup=10 / 90,
            batch_size=8192,
            epochs=90,
            checkpoints=90,
            augment="crop",
            choose_on="test",
        ),
    }
)
