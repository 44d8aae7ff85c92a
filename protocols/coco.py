"""Detection and instance segmentation by fine-tuning, on data in COCO's format."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from mimbench.errors import UserError
from mimbench.outcomes import Detections
from mimbench.protocol import Evaluation, Preset, Protocol, Surroundings, sampled
from mimbench.selection import select_and_test, without_choice
from protocols.parts.objects import objects, useful

if TYPE_CHECKING:
    from mimbench.data import Dataset, Split
    from mimbench.encoder import Encoder
    from protocols.parts.coco_metric import Judge
    from protocols.parts.detecting import Study
    from protocols.parts.marked import Found

_Positive = Annotated[float, Field(gt=0)]
_Share = Annotated[float, Field(gt=0, lt=1)]

VITDET_SIDE = 1024  # pixels of its images, for encoders of 224 and photographs of 640
MULTIPLE = 2  # of patches: the pyramid halves the last map
OFFICIAL = (
    "detectron2, projects/ViTDet/configs/COCO/{config} (Li et al. 2022, arXiv:2203.16527). Differs: no "
    "decomposed relative positions in the attention; biases are not decayed, as in mmdet's version; the "
    "run's precision instead of fp16; trained on all images of train and validation, evaluated on test once"
)
_VITDET = {
    "image_size": VITDET_SIDE,
    "steps": 184375,
    "batch_size": 64,
    "lr": (1e-4,),
    "train_on": "train+validation",
}


@dataclass(frozen=True)
class CocoDetection(Protocol):
    """Mask R-CNN with ViTDet's simple feature pyramid and windowed attention, all weights trained.

    Through mmdet and mmengine's Runner, AdamW with layer-wise learning-rate decay, large-scale jitter, images
    padded to a square. A set without masks gets Faster R-CNN, the same without a mask head. One detector is
    trained for each lr, validation chooses among them by box AP; it is tested as it was trained.

    Sizes follow the encoder and the data, unless they are given. The images' side keeps ViTDet's proportions:
    1024 pixels for an encoder of 224, and for photographs of 640, whichever is less.
    """

    key = "coco"
    version = 1
    task = "detection"
    metric = "box_ap"
    summary = "Mask R-CNN with ViTDet's pyramid, fine-tuned; AP of boxes, and of masks where there are any"
    requires = (("mmdet", "mmengine", "mmcv", "pycocotools"), "dense")
    presets = MappingProxyType(
        {
            "vitdet": Preset(_VITDET, OFFICIAL.format(config="mask_rcnn_vitdet_b_100ep.py")),
            "vitdet-large": Preset(
                {**_VITDET, "layer_decay": 0.8, "drop_path": 0.4},
                OFFICIAL.format(config="mask_rcnn_vitdet_l_100ep.py"),
            ),
            "vitdet-huge": Preset(
                {**_VITDET, "steps": 138281, "layer_decay": 0.9, "drop_path": 0.5},
                OFFICIAL.format(config="mask_rcnn_vitdet_h_75ep.py"),
            ),
        }
    )

    image_size: Annotated[int, Field(gt=0)] | None = None  # pixels; None: see above
    # Passes over train (12 are COCO's 1x schedule, ViTDet has 100), but min_steps at least; or so many steps.
    epochs: _Positive = 12
    min_steps: Annotated[int, Field(gt=0)] = 300
    steps: Annotated[int, Field(gt=0)] | None = None
    batch_size: Annotated[int, Field(gt=0)] = 8
    lr: Annotated[tuple[_Positive, ...], Field(min_length=1)] = (1e-4, 3e-4)
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.7
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.1
    warmup: Annotated[int, Field(ge=0)] = 250  # steps, a tenth of all at most
    # Shares of the run after which the lr falls tenfold: epochs 88 and 96 of ViTDet's 100.
    milestones: tuple[_Share, ...] = (163889 / 184375, 177546 / 184375)
    scale: tuple[_Positive, _Positive] = (0.1, 2.0)  # of the jitter, around what fits into the square
    window: Annotated[int, Field(gt=0)] | None = 14  # patches; None: all blocks look at the whole image
    # Width of pyramid and heads, and regions an image that the heads learn from: of ViTDet's 256 and 512 a
    # part that follows the images' side and its square, 64 at least.
    channels: Annotated[int, Field(gt=0)] | None = None
    roi_samples: Annotated[int, Field(ge=4)] | None = None
    # "train+validation" for recipes that were published so; it takes one lr, as nothing is left to choose by.
    train_on: Literal["train", "train+validation"] = "train"

    @property
    def collective(self) -> bool:
        """Every process trains."""
        return True

    def check(self, data: Dataset) -> None:
        """Raise UserError for fields that contradict each other and for data with nothing to be found."""
        super().check(data)
        if self.train_on != "train" and len(self.lr) > 1:
            raise UserError(
                f"coco.train_on={self.train_on} leaves no images to choose among {len(self.lr)} learning "
                "rates by; give one, or train on train"
            )
        if self.scale[0] > self.scale[1]:
            raise UserError(f"coco.scale={list(self.scale)} must be the least and the most, in this order")
        for split in (data.train, data.validation):
            if not _has_objects(split):
                raise UserError(
                    f"the {split.name} images of {data.name} have no object of their own, so nothing can be "
                    "learnt or chosen by them; give a set with more annotations"
                )

    def evaluate(self, encoder: Encoder, data: Dataset, around: Surroundings) -> Evaluation:
        """Box AP (and mask AP) of the detector that validation chose."""
        self.check(data)
        side = self._side(encoder, data)
        # Built once before the work, so that an impossible size is told at once.
        encoder.backbone.rebuilt(image_size=side, drop_path=self.drop_path)
        from protocols.parts.detecting import Study

        with ExitStack() as stack:
            folder = around.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            study = Study(self, encoder, data, around, folder, side)
            if self.train_on == "train":
                selection, (judge, found) = select_and_test(
                    data,
                    [{"lr": lr} for lr in self.lr],
                    study.validate,
                    study.test,
                    axes={"lr": (0, math.inf)},
                    notes=study.notes,
                    metric=self.metric,
                )
                content, chosen = selection.content(), selection.chosen
                more = {f"validation_{self.metric}": selection.score}
            else:
                study.train_all()
                content, (judge, found) = without_choice(
                    data,
                    {"lr": self.lr[0]},
                    partial(study.test, 0),
                    "trained on train and validation together, as published: nothing was chosen",
                )
                chosen, more = 0, {}
        return self._evaluation(judge, found, data, content, more, study, chosen)

    def _evaluation(
        self,
        judge: Judge,
        found: Sequence[Found],
        data: Dataset,
        selection: dict[str, Any],
        more: dict[str, float],
        study: Study,
        chosen: int,
    ) -> Evaluation:
        from mimbench.openmm import operators
        from protocols.parts.coco_metric import figures

        boxes = judge.evaluate(found, "bbox")
        metrics = figures(boxes, "box")
        if self.metric not in metrics:
            raise UserError(f"the test images of {data.name} have no object to be found; give others")
        if data.has_masks:
            metrics |= figures(judge.evaluate(found, "segm"), "mask")
        return Evaluation(
            {**metrics, **more},
            Detections.of_coco(boxes, judge.image_ids),
            selection,
            facts={
                "detector": "Mask R-CNN" if data.has_masks else "Faster R-CNN",
                "image_size": study.side,
                "steps": study.steps,
                "channels": study.channels,
                "roi_samples": study.roi_samples,
                "operators": operators(),
            },
            curve=study.curves[chosen],
            samples=_samples(found),
        )

    def _side(self, encoder: Encoder, data: Dataset) -> int:
        """The images' side in pixels, a multiple of two patches unless it was given."""
        if self.image_size is not None:
            return self.image_size
        unit = MULTIPLE * encoder.backbone.patch_size
        looked = np.linspace(0, len(data.train) - 1, min(len(data.train), 1000)).astype(int)
        targets = (objects(data.train, int(i)) for i in looked)
        longer = float(np.median([max(target.height, target.width) for target in targets]))
        wanted = min(encoder.image_size / 224, longer / 640) * VITDET_SIDE
        return max(unit, round(wanted / unit) * unit)

    def schedule(self, steps: int) -> tuple[dict[str, Any], ...]:
        """mmengine's parameter schedulers for a run of so many steps."""
        warmup = min(self.warmup, steps // 10)
        falls = sorted({round(share * steps) for share in self.milestones})
        decay = {"type": "MultiStepLR", "milestones": falls, "gamma": 0.1}
        linear = {"type": "LinearLR", "start_factor": 0.001, "end": warmup}
        return (*([linear] if warmup else []), *([decay] if falls else []))


def _samples(found: Sequence[Found]) -> dict[str, np.ndarray]:
    """The detections of some images, best first, as ``Evaluation.samples``."""
    samples = {}
    for place in sampled(len(found)):
        one = found[place]
        order = np.argsort(-one.scores, kind="stable")
        samples[f"boxes {place}"] = np.column_stack([one.boxes, one.scores])[order].astype(np.float32)
        samples[f"classes {place}"] = np.asarray(one.labels)[order].astype(np.int32)
    return samples


def _has_objects(split: Split) -> bool:
    return any(useful(objects(split, i)).any() for i in range(len(split)))
