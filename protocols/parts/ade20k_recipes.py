"""Official recipes of fine-tuning on ADE20K, and the schedules they are made of."""

from __future__ import annotations

from typing import Any, Literal

from mimbench.protocol import Preset

_OFFICIAL: dict[str, Any] = {
    "steps": 160_000,
    "batch_size": 16,
    "crop": 512,
    "warmup": 1500 / 160_000,
    "with_validation": True,
}
_HERE = "in fp16 there, in the run's precision here"


def _preset(lr: float, layer_decay: float, drop_path: float, source: str, **more: Any) -> Preset:
    fields = {**_OFFICIAL, "lr": (lr,), "layer_decay": layer_decay, "drop_path": drop_path, **more}
    return Preset(fields, f"{source}; {_HERE}")


RECIPES = {
    "beit": _preset(7e-4, 0.65, 0.1, "microsoft/unilm beit/semantic_segmentation, base, pre-trained only"),
    "beitv2": _preset(5e-5, 0.75, 0.15, "microsoft/unilm beit2/semantic_segmentation, base"),
    "mae": _preset(
        1e-4,
        0.65,
        0.1,
        "mmsegmentation configs/mae, base; its relative positions, which start at zero, are not added",
    ),
    "ibot": _preset(
        8e-5,
        0.65,
        0.1,
        "bytedance/ibot evaluation/semantic_segmentation, base, with its README's learning rate",
        final_norm=True,
    ),
    "dbot": _preset(1e-4, 0.65, 0.2, "dBOT (arXiv:2209.03917), base"),
    "localmim": _preset(
        4e-4, 0.65, 0.1, "LocalMIM (arXiv:2303.05251), base", layers=(2 / 12, 4 / 12, 10 / 12, 1.0)
    ),
    "dinov3-linear": Preset(
        {
            "head": "linear",
            "frozen": True,
            "layers": (1.0,),
            "final_norm": True,
            "lr": (1e-3,),
            "weight_decay": 1e-3,
            "schedule": "cosine",
            "steps": 40_000,
            "warmup": 1500 / 40_000,
            "batch_size": 16,
            "crop": 512,
            "drop_path": 0.0,
            "with_validation": True,
        },
        source=(
            "facebookresearch/dinov3 dinov3/eval/segmentation: dropout, batch norm and a linear map on "
            "frozen patch tokens; without the photometric distortion and the limit of a class's share "
            "that this has"
        ),
    ),
}


def schedulers(steps: int, warmup: float, kind: Literal["poly", "cosine"]) -> tuple[dict[str, Any], ...]:
    """mmengine's schedulers: a linear rise from a millionth, then a straight fall or half a cosine to 0."""
    rise = min(round(warmup * steps), steps - 1)
    fall: dict[str, Any] = {"type": "PolyLR", "power": 1.0, "eta_min": 0.0}
    if kind == "cosine":
        fall = {"type": "CosineAnnealingLR", "eta_min": 0.0, "T_max": steps - rise}
    first: tuple[dict[str, Any], ...] = ()
    if rise:
        first = ({"type": "LinearLR", "start_factor": 1e-6, "begin": 0, "end": rise},)
    return (*first, {**fall, "begin": rise, "end": steps})
