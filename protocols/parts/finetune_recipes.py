"""The fine-tunings of papers, as fields of the protocol ``finetune``, with what their reproduction lacks."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from mimbench.protocol import Preset

_COMMON = (
    " Best epoch on the test images, as published. Here: a batch is mixed as a whole and not per GPU, "
    "crops are torchvision's (ten tries), an epoch's last batch runs on into the next, and sets so small "
    "that the recipe would leave fewer than 1000 updates get smaller batches, then more epochs."
)


def _recipe(
    source: str,
    *,
    epochs: int = 100,
    lr: float | tuple[float, ...],
    warmup: int,
    layer_decay: float,
    drop_path: float,
    **more: Any,
) -> Preset:
    """warmup: in epochs."""
    fields = {
        "epochs": epochs,
        "batch_size": 1024,
        "lr": lr if isinstance(lr, tuple) else (lr,),
        "warmup": warmup / epochs,
        "layer_decay": (layer_decay,),
        "drop_path": drop_path,
        "epoch": "best",
        "choose_on": "test",
        **more,
    }
    return Preset(MappingProxyType(fields), source + _COMMON)


def _mae(
    source: str,
    *,
    lr: float = 5e-4,
    warmup: int = 5,
    layer_decay: float = 0.65,
    drop_path: float = 0.1,
    **more: Any,
) -> Preset:
    """MAE's script and those built on it: rates per 256, a new layer norm on the mean of the patches."""
    return _recipe(
        source,
        lr=lr,
        warmup=warmup,
        layer_decay=layer_decay,
        drop_path=drop_path,
        **{"token": "mean", **more},
    )


def _beit(source: str, **more: Any) -> Preset:
    """BEiT's script and those built on it: absolute rates."""
    return _recipe(source, **{"lr_rule": "absolute", "token": "mean", **more})


RECIPES = MappingProxyType(
    {
        "mae": _mae(
            "facebookresearch/mae FINETUNE.md, ViT-B: 5e-4 per 256, layer decay 0.65 (the paper's table says "
            "1e-3 and 0.75)."
        ),
        "mae-large": _mae(
            "facebookresearch/mae FINETUNE.md, ViT-L.", epochs=50, lr=1e-3, layer_decay=0.75, drop_path=0.2
        ),
        "mae-huge": _mae(
            "facebookresearch/mae FINETUNE.md, ViT-H at 224.",
            epochs=50,
            lr=1e-3,
            layer_decay=0.75,
            drop_path=0.3,
        ),
        "beit": _beit(
            "microsoft/unilm beit, ViT-B pre-trained on ImageNet-22k: 4e-3 at batch 1024; its shared table "
            "of relative positions becomes one a block.",
            lr=4e-3,
            warmup=20,
            layer_decay=0.65,
            drop_path=0.1,
        ),
        "beit-large": _beit(
            "microsoft/unilm beit, ViT-L.", epochs=50, lr=1e-3, warmup=5, layer_decay=0.75, drop_path=0.2
        ),
        "beitv2": _beit(
            "microsoft/unilm beit2, ViT-B pre-trained for 300 epochs (for 1600: layer decay 0.6, drop "
            "path 0.2).",
            lr=5e-4,
            warmup=20,
            layer_decay=0.65,
            drop_path=0.1,
        ),
        "beitv2-large": _beit(
            "microsoft/unilm beit2, ViT-L pre-trained for 300 epochs.",
            epochs=50,
            lr=5e-4,
            warmup=5,
            layer_decay=0.8,
            drop_path=0.2,
        ),
        "simmim": _recipe(
            "microsoft/SimMIM, ViT-B: 1.25e-3 per 512, gradients clipped at 5.",
            lr=1.25e-3,
            lr_rule="per_512",
            batch_size=2048,
            warmup=20,
            min_lr=1e-6,
            layer_decay=0.65,
            drop_path=0.1,
            clip_grad=5.0,
            token="mean",
        ),
        "maskfeat": _recipe(
            "facebookresearch/SlowFast MaskFeat, ViT-B: 2e-3 for each 256 images of a batch of 512.",
            lr=2e-3,
            batch_size=512,
            warmup=20,
            layer_decay=0.65,
            drop_path=0.1,
            token="mean",
        ),
        "maskfeat-large": _recipe(
            "facebookresearch/SlowFast MaskFeat, ViT-L: 1e-3 at batch 256.",
            epochs=50,
            lr=1e-3,
            batch_size=256,
            warmup=5,
            layer_decay=0.75,
            drop_path=0.1,
            token="mean",
        ),
        "ibot": _recipe(
            "bytedance/ibot and arXiv:2111.07832, ViT-B: the class token; the best of four rates and of "
            "all epochs, both by the test images.",
            lr=(8e-4, 9e-4, 1e-3, 2e-3),
            lr_rule="absolute",
            warmup=20,
            layer_decay=0.65,
            drop_path=0.2,
            token="cls",
        ),
        "cae": _beit(
            "lxtGH/CAE, ViT-B: 8e-3 at batch 4096; head by the card.",
            lr=8e-3,
            batch_size=4096,
            warmup=5,
            layer_decay=0.65,
            drop_path=0.1,
            token="card",
        ),
        "cae-large": _beit(
            "lxtGH/CAE, ViT-L: 2e-3 at batch 4096; head by the card.",
            epochs=50,
            lr=2e-3,
            batch_size=4096,
            warmup=5,
            layer_decay=0.75,
            drop_path=0.2,
            token="card",
        ),
        "data2vec": _beit(
            "facebookresearch/data2vec_vision, ViT-B: no weight decay, a quirk of its script.",
            lr=4e-3,
            warmup=10,
            layer_decay=0.65,
            drop_path=0.2,
            weight_decay=0.0,
        ),
        "data2vec-large": _beit(
            "facebookresearch/data2vec_vision, ViT-L.",
            epochs=50,
            lr=5e-3,
            warmup=5,
            layer_decay=0.65,
            drop_path=0.25,
        ),
        "bootmae": _beit(
            "LightDXY/BootMAE, ViT-B: 5e-3 at batch 2048, average of the weights with decay 0.9998 (here "
            "with timm's warm-up).",
            lr=5e-3,
            batch_size=2048,
            warmup=20,
            layer_decay=0.6,
            drop_path=0.1,
            ema=0.9998,
        ),
        "dtm": _beit("DTM, ViT-B, by BEiT v2's script.", lr=5e-4, warmup=20, layer_decay=0.65, drop_path=0.1),
        "localmim": _beit(
            "Haoqing-Wang/LocalMIM, ViT-B pre-trained for 1600 epochs.",
            lr=2e-3,
            warmup=20,
            min_lr=1e-5,
            layer_decay=0.65,
            drop_path=0.1,
        ),
        "dbot": _mae("liuxingbin/dbot, ViT-B.", lr=3e-4),
        "dbot-large": _mae(
            "liuxingbin/dbot, ViT-L: gradients clipped at 1.",
            epochs=50,
            lr=3e-4,
            layer_decay=0.75,
            drop_path=0.25,
            clip_grad=1.0,
        ),
        "hpm": _mae("Haochen-Wang409/HPM, ViT-B, and DropPos.", layer_decay=0.8, batch_size=384),
        "hpm-large": _mae(
            "Haochen-Wang409/HPM, ViT-L, and DropPos.", epochs=50, layer_decay=0.8, batch_size=512
        ),
        "maskalign": _mae("OpenPerceptionX/maskalign, ViT-B.", lr=3e-4, layer_decay=0.55, drop_path=0.2),
        "maskalign-large": _mae(
            "OpenPerceptionX/maskalign, ViT-L.", epochs=50, lr=3e-4, layer_decay=0.75, drop_path=0.4
        ),
        "mage": _mae("LTH14/mage, ViT-B: nothing is erased.", lr=2.5e-4, erasing=0.0),
        "mage-large": _mae(
            "LTH14/mage, ViT-L: nothing is erased.",
            epochs=50,
            lr=2.5e-4,
            layer_decay=0.75,
            drop_path=0.2,
            erasing=0.0,
        ),
        "lut": _mae("LUT, ViT-B.", lr=1e-3, layer_decay=0.75),
        "siameseim": _mae("fundamentalvision/Siamese-Image-Modeling, ViT-B.", lr=2.5e-4),
        "ropim": _mae("ROPIM, ViT-B: 5e-3 per 512.", lr=5e-3, lr_rule="per_512", layer_decay=0.75),
    }
)
