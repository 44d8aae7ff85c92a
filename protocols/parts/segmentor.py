"""mmsegmentation's model and pipelines around a backbone of ours. To be imported after ``prepare``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mimbench.openmm import prepare, scoped
from mimbench.openmm.prepare import quiet
from mimbench.openmm.samples import Samples
from mimbench.outcomes import Overlaps

prepare()

import mmseg.models  # noqa: E402, F401, fills the registry
from mmcv.cnn import build_norm_layer  # noqa: E402
from mmcv.transforms import RandomFlip, RandomResize, Resize  # noqa: E402
from mmengine.config import ConfigDict  # noqa: E402
from mmseg.datasets.transforms import PackSegInputs, PhotoMetricDistortion, RandomCrop  # noqa: E402
from mmseg.models.decode_heads.decode_head import BaseDecodeHead  # noqa: E402
from mmseg.registry import MODELS  # noqa: E402

import mimbench.openmm.backbone  # noqa: E402, F401, registers it

if TYPE_CHECKING:
    from mimbench.data import Split
    from mimbench.encoder import Encoder

Head = Literal["upernet", "linear"]
# Of a level of the pyramid, by the step of a patch: BEiT's Feature2Pyramid.
RESCALES = (4, 2, 1, 0.5)
ASPECT = 4  # images are resized to fit into a frame of this shape: 2048 x 512


class Shape(NamedTuple):
    """What the model is built for."""

    crop: int  # pixels, a side
    classes: int
    ignore: int  # the number of pixels of no class

    @property
    def stride(self) -> int:
        """Of sliding inference: 341 of 512 pixels."""
        return max(1, self.crop * 2 // 3)


@MODELS.register_module(name="MimbenchLinearHead")
class LinearHead(BaseDecodeHead):
    """DINOv3's linear head: dropout of whole channels, batch norm, one 1 x 1 convolution.

    Of several maps, brought to the size of the first and side by side.
    """

    def __init__(self, **options: Any):
        width = sum(options["in_channels"])
        super().__init__(input_transform="resize_concat", channels=width, **options)
        self.norm = build_norm_layer(self.norm_cfg, width)[1]

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Logits [B, classes, H, W] of maps [B, D, H, W]."""
        x = self._transform_inputs(inputs)
        if self.dropout is not None:
            x = self.dropout(x)
        return self.conv_seg(self.norm(x))


def build_segmentor(
    body: nn.Module,
    encoder: Encoder,
    layers: Sequence[int],
    shape: Shape,
    *,
    head: Head,
    frozen: bool,
    final_norm: bool,
    sync: bool,
) -> nn.Module:
    """A segmentor whose backbone is ``body``, with weights of its own drawn from torch's generator.

    body: see ``Backbone.rebuilt``, for images of ``shape.crop`` pixels. encoder: whose pixel statistics
    count. layers: from the end, four of them for "upernet". sync: whether batch norm goes over processes.
    """
    norm = {"type": "SyncBN" if sync else "BN", "requires_grad": True}
    width = _width(body, layers, shape.crop)
    common = {
        "num_classes": shape.classes,
        "norm_cfg": norm,
        "align_corners": False,
        "dropout_ratio": 0.1,
        "ignore_index": shape.ignore,
    }
    model: dict[str, Any] = {
        "type": "EncoderDecoder",
        "data_preprocessor": {
            "type": "SegDataPreProcessor",
            "mean": (encoder.mean.flatten() * 255).tolist(),
            "std": (encoder.std.flatten() * 255).tolist(),
            "bgr_to_rgb": True,
            "pad_val": 0,
            "seg_pad_val": shape.ignore,
            "size": (shape.crop, shape.crop),
            "test_cfg": {"size": (shape.crop, shape.crop)},  # pads what is narrower than a window
        },
        "backbone": {
            "type": "MimbenchBackbone",
            "body": body,
            "layers": tuple(layers),
            "final_norm": final_norm,
            "frozen": frozen,
        },
        "train_cfg": {},
        "test_cfg": ConfigDict(
            mode="slide", crop_size=(shape.crop, shape.crop), stride=(shape.stride, shape.stride)
        ),
    }
    if head == "linear":
        model["decode_head"] = {
            **common,
            "type": "MimbenchLinearHead",
            "in_channels": [width] * len(layers),
            "in_index": list(range(len(layers))),
            "loss_decode": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0},
        }
    else:
        model["neck"] = {
            "type": "Feature2Pyramid",
            "embed_dim": width,
            "rescales": list(RESCALES),
            "norm_cfg": norm,
        }
        model["decode_head"] = {
            **common,
            "type": "UPerHead",
            "in_channels": [width] * 4,
            "in_index": [0, 1, 2, 3],
            "pool_scales": (1, 2, 3, 6),
            "channels": width,
            "loss_decode": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0},
        }
        model["auxiliary_head"] = {
            **common,
            "type": "FCNHead",
            "in_channels": width,
            "in_index": 2,
            "channels": 256,
            "num_convs": 1,
            "concat_input": False,
            "loss_decode": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 0.4},
        }
    with quiet(), scoped("mmseg"):
        built: nn.Module = MODELS.build(model)
        built.init_weights()
    return built


@torch.no_grad()
def _width(body: Any, layers: Sequence[int], crop: int) -> int:
    """Features of a patch token, which raw pixels have fewer of than their class token has."""
    was = body.training
    body.train(False)
    device = next((parameter.device for parameter in body.parameters()), torch.device("cpu"))
    width = body.maps(torch.zeros(1, 3, crop, crop, device=device), layers[-1:])[0].shape[1]
    body.train(was)
    return int(width)


def training_samples(splits: Sequence[Split], names: Sequence[str], shape: Shape, flip: bool) -> Samples:
    """Random crops of the images of ``splits``, as everybody trains on ADE20K.

    Resized to half to twice the crop's size, a crop that no class fills by more than three quarters, a
    flip where the data allows it, photometric distortion.
    """
    transforms: list[Any] = [
        RandomResize(
            scale=(ASPECT * shape.crop, shape.crop),
            ratio_range=(0.5, 2.0),
            resize_type="Resize",
            keep_ratio=True,
        ),
        RandomCrop((shape.crop, shape.crop), cat_max_ratio=0.75, ignore_index=shape.ignore),
        *([RandomFlip(prob=0.5)] if flip else []),
        PhotoMetricDistortion(),
        PackSegInputs(),
    ]
    ends = np.cumsum([len(split) for split in splits])

    def load(index: int) -> dict[str, Any]:
        part = int(np.searchsorted(ends, index, side="right"))
        split = splits[part]
        return loaded(split, index - int(ends[part] - len(split)), annotated=True)

    return Samples(int(ends[-1]), load, transforms, {"classes": tuple(names)})


def evaluation_samples(split: Split, names: Sequence[str], shape: Shape) -> Samples:
    """Whole images, their short side resized to the crop's; label maps as they are."""
    transforms: list[Any] = [
        Resize(scale=(ASPECT * shape.crop, shape.crop), keep_ratio=True),
        _annotate,
        PackSegInputs(),
    ]
    return Samples(
        len(split), lambda index: loaded(split, index, annotated=False), transforms, {"classes": tuple(names)}
    )


def loaded(split: Split, index: int, *, annotated: bool) -> dict[str, Any]:
    """What mmseg's transforms begin with: an image as BGR and its label map.

    Pixels of no class have their final number already (``Split.target``), so that mmseg's own
    ``reduce_zero_label`` is never asked for. annotated: whether the label map goes through the transforms
    too; it is added behind them otherwise.
    """
    pixels, target = split.image(index), split.target(index)
    found: dict[str, Any] = {
        "img": np.ascontiguousarray(pixels[:, :, ::-1]),
        "img_path": split.sample_id(index),
        "img_shape": pixels.shape[:2],
        "ori_shape": pixels.shape[:2],
        "seg_fields": ["gt_seg_map"] if annotated else [],
        "reduce_zero_label": False,
    }
    found["gt_seg_map" if annotated else "target"] = np.array(target)
    return found


def _annotate(results: dict[str, Any]) -> dict[str, Any]:
    results["gt_seg_map"] = results.pop("target")
    return results


class Overlap:
    """What is kept of a prediction: how it overlaps with the annotation, at the annotation's resolution.

    wanted: number by name of the images whose predictions are kept, as ``Evaluation.samples``.
    """

    def __init__(self, shape: Shape, wanted: Mapping[str, int]):
        self.shape, self.wanted = shape, wanted

    def __call__(self, sample: Any) -> tuple[Overlaps, dict[str, np.ndarray]]:
        said, true = (
            data.squeeze(0).cpu().numpy() for data in (sample.pred_sem_seg.data, sample.gt_sem_seg.data)
        )
        number = self.wanted.get(sample.img_path)
        kept = {} if number is None else {f"labels {number}": said.astype(np.uint16)}
        return Overlaps.of_maps([(said, true)], self.shape.classes, self.shape.ignore), kept


def joined(parts: Sequence[Overlaps]) -> Overlaps:
    """The overlaps of images one after the other."""
    return Overlaps(
        np.concatenate([part.intersections for part in parts]),
        np.concatenate([part.unions for part in parts]),
    )


def typical_side(split: Split, most: int = 64) -> int:
    """The median of the images' short sides, in pixels; of at most ``most`` images, evenly chosen."""
    chosen = np.linspace(0, len(split) - 1, min(most, len(split))).round().astype(int)
    return int(np.median([min(split.image(int(i)).shape[:2]) for i in chosen]))


def at_once(share: int, wanted: int | None) -> int:
    """How many of a process's ``share`` of a batch are taken at once, in equal parts: ``wanted`` at most, if
    that is possible with the two that batch norm needs."""
    parts = [size for size in range(2, share + 1) if share % size == 0]
    return max([size for size in parts if size <= (wanted or share)] or parts[:1])
