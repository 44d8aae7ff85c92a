"""Segmentation by fine-tuning with UPerNet, through mmsegmentation."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field
from torch import nn

from mimbench.errors import UserError
from mimbench.features import weights_sha256
from mimbench.monitor import TrainingStopped
from mimbench.outcomes import Overlaps
from mimbench.precision import make_fabric
from mimbench.protocol import Evaluation, Protocol, Surroundings, sampled
from mimbench.seeding import seeded_init
from mimbench.selection import Scores, select_and_test, without_choice
from protocols.parts.ade20k_recipes import RECIPES, schedulers
from protocols.parts.frozen import layer_at
from protocols.parts.patches import figures, ignored, label_map
from protocols.parts.scratch import scratch

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from mimbench.data import Dataset, Split
    from mimbench.encoder import Encoder
    from mimbench.openmm.fit import Fitted
    from protocols.parts.segmentor import Shape

_Count = Annotated[int, Field(gt=0)]
_Positive = Annotated[float, Field(gt=0)]
_Share = Annotated[float, Field(gt=0, le=1)]

LARGEST_CROP = 512


@dataclass(frozen=True)
class ADE20K(Protocol):
    """UPerNet (arXiv:1807.10221) on four levels of the encoder, all of it trained: BEiT's recipe.

    Maps after 1/3, 1/2, 2/3 and all of the blocks, without the final norm, brought to 4, 2, 1 and 1/2 times
    the patch grid; an auxiliary head on the third; cross-entropy; AdamW with layer-wise learning rate decay;
    a learning rate that rises for ``warmup`` and falls linearly. Random crops, resized to half to twice their
    size and distorted in colour; tested by sliding windows two thirds of a side apart, scored at the
    annotation's own resolution. The encoder's positions are interpolated to the crop's size.

    What scales with the data: the crop is the images' typical short side, at most 512 pixels; steps are 32
    passes over train, as mmsegmentation's schedule of 40,000 steps is on ADE20K. Of several learning rates
    each is tried on a shorter schedule, of ``trial`` of the steps; the best on validation is then trained in
    full. That costs 1.75 trainings rather than three, and favours somewhat higher rates.

    Batch norm goes over all processes on GPUs; on CPUs, where torch has no such thing, over a process's own
    share of the batch, so that there the number of processes has a part in the result. So has accumulation
    (``--micro-batch``): batch norm sees the images that are taken at once, which the record says.
    """

    key = "ade20k"
    version = 1
    task = "segmentation"
    metric = "miou"
    summary = "fine-tuning with UPerNet and layer-wise learning rate decay (mmsegmentation)"
    requires = (("mmseg", "mmengine", "mmcv"), "dense")
    presets = RECIPES

    head: Literal["upernet", "linear"] = "upernet"
    frozen: bool = False  # the encoder
    layers: Annotated[tuple[_Share, ...], Field(min_length=1)] = (1 / 3, 1 / 2, 2 / 3, 1.0)  # of the depth
    final_norm: bool = False  # on each level
    # Of several, validation chooses.
    lr: Annotated[tuple[_Positive, ...], Field(min_length=1)] = (3e-5, 1e-4, 3e-4)
    trial: _Share = 0.25
    epochs: _Positive = 32
    steps: _Count | None = None  # instead of epochs
    batch_size: _Count = 16
    crop: _Count | None = None  # pixels, a multiple of the patch size
    layer_decay: _Share = 0.65
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.1
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    schedule: Literal["poly", "cosine"] = "poly"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0375  # share of the steps
    # Whether validation is trained on as well, as official recipes do; takes a single learning rate.
    with_validation: bool = False

    @property
    def collective(self) -> bool:
        return True

    def check(self, data: Dataset) -> None:
        """Raise UserError for settings that do not go together."""
        super().check(data)
        if self.head == "upernet" and len(self.layers) != 4:
            raise UserError(
                f"ade20k.layers={list(self.layers)}: UPerNet reads four levels; give four shares of the depth"
            )
        if self.with_validation and len(self.lr) > 1:
            raise UserError(
                "ade20k.with_validation trains on the validation split, which then cannot choose between "
                f"{len(self.lr)} learning rates; give one"
            )

    def evaluate(self, encoder: Encoder, data: Dataset, around: Surroundings) -> Evaluation:
        """Mean IoU after the training with the learning rate that validation chose."""
        self.check(data)
        fabric = around.fabric or make_fabric("fp32")
        if self.batch_size // fabric.world_size < 2:
            raise UserError(
                f"ade20k.batch_size={self.batch_size} leaves each of {fabric.world_size} processes less than "
                "the 2 images that batch norm needs; use a larger one"
            )
        with scratch(around.folder, fabric) as folder:
            work = _Work(self, encoder, data, around, fabric, folder)
            choose = self._trained_on_both if self.with_validation else self._chosen
            content, found, metrics = choose(work, data)
        return Evaluation(metrics, found, content, work.facts(), work.curve, work.samples)

    def _trained_on_both(
        self, work: _Work, data: Dataset
    ) -> tuple[dict[str, Any], Overlaps, dict[str, float]]:
        """Without a choice, as validation is a part of what is trained on."""
        (lr,) = self.lr
        content, found = without_choice(
            data,
            {"lr": lr},
            lambda split: work.overlaps(work.trained(lr), split),
            "trained on train and validation together, as published: nothing was chosen",
        )
        return content, found, figures(found)

    def _chosen(self, work: _Work, data: Dataset) -> tuple[dict[str, Any], Overlaps, dict[str, float]]:
        rates = list(dict.fromkeys(self.lr))
        models: dict[float, nn.Module] = {}
        validation: dict[str, float] = {}

        def attempt(lr: float, split: Split) -> float:
            try:
                model = work.trained(lr, 1.0 if len(rates) == 1 else self.trial)
            except TrainingStopped:  # the loss is not finite
                if len(rates) == 1:
                    raise
                return math.nan
            if len(rates) == 1:
                models[lr] = model
            return work.overlaps(model, split).score

        def validate(split: Split) -> Scores:
            return Scores([attempt(lr, split) for lr in rates])

        def test(chosen: int, split: Split) -> Overlaps:
            model = models.get(rates[chosen]) or work.trained(rates[chosen])
            if len(rates) > 1:
                validation["validation_miou"] = work.overlaps(model, data.validation).score
            return work.overlaps(model, split)

        selection, found = select_and_test(
            data,
            [{"lr": lr} for lr in rates],
            validate,
            test,
            axes={"lr": (0, math.inf)},
            notes=[f"each learning rate was tried on a schedule of {self.trial:g} of the steps"]
            if len(rates) > 1
            else [],
            metric=self.metric,
        )
        metrics = {**figures(found), "validation_miou": selection.score, **validation}
        return selection.content(), found, metrics


class _Work:
    """Models that are trained and measured for one evaluation."""

    def __init__(
        self,
        protocol: ADE20K,
        encoder: Encoder,
        data: Dataset,
        around: Surroundings,
        fabric: Fabric,
        folder: Path,
    ):
        from mimbench.openmm import prepare

        prepare()
        from protocols.parts.segmentor import Shape, at_once, typical_side

        assert data.classes is not None
        self.protocol, self.encoder, self.data, self.around = protocol, encoder, data, around
        self.fabric, self.folder = fabric, folder
        self.names, self.splits = data.classes, [data.train]
        if protocol.with_validation:
            self.splits.append(data.validation)
        patch = encoder.backbone.patch_size
        crop = protocol.crop or max(2 * patch, min(LARGEST_CROP, typical_side(data.train)) // patch * patch)
        if crop < 2 * patch:
            raise UserError(
                f"a crop of {crop} pixels holds less than 2 x 2 patches of {patch} pixels, which the levels "
                f"of UPerNet need; set ade20k.crop to {2 * patch} or more"
            )
        self.shape: Shape = Shape(crop, len(self.names), ignored(label_map(data.train, 0)))
        self.layers = [layer_at(share, encoder.depth) for share in protocol.layers]
        images = sum(map(len, self.splits))
        self.steps = protocol.steps or max(1, round(protocol.epochs * images / protocol.batch_size))
        self.identity = {
            "protocol": protocol.key,
            "version": protocol.version,
            "fields": asdict(protocol),
            "weights": weights_sha256(encoder),
            "data": data.fingerprint,
        }
        self.at_once = at_once(protocol.batch_size // fabric.world_size, around.micro_batch)
        self.curve: list[dict[str, float]] = []
        self.samples: dict[str, np.ndarray] = {}  # of the split that was predicted last
        self.seconds = 0.0
        self.trainable = 0

    def trained(self, lr: float, share: float = 1.0) -> nn.Module:
        """A model trained with ``lr`` on a schedule of this share of the steps."""
        from mimbench.openmm.fit import Training, fit
        from protocols.parts.segmentor import build_segmentor, training_samples

        protocol, around = self.protocol, self.around
        steps = max(1, round(self.steps * share))
        body = self.encoder.backbone.rebuilt(image_size=self.shape.crop, drop_path=protocol.drop_path)
        with seeded_init(around.seed, "ade20k"):
            model = build_segmentor(
                body,
                self.encoder,
                self.layers,
                self.shape,
                head=protocol.head,
                frozen=protocol.frozen,
                final_norm=protocol.final_norm,
                sync=self.fabric.world_size > 1 and self.fabric.device.type == "cuda",
            )
        self.trainable = sum(p.numel() for p in model.backbone.parameters() if p.requires_grad)
        what = f"lr {lr:g}" + ("" if share == 1 else f", {share:g} of the steps")
        fitted: Fitted = fit(
            model,
            training_samples(self.splits, self.names, self.shape, self.data.defaults.flip),
            Training(
                steps=steps,
                batch_size=protocol.batch_size,
                lr=lr,
                weight_decay=protocol.weight_decay,
                layer_decay=protocol.layer_decay,
                schedule=schedulers(steps, protocol.warmup, protocol.schedule),
            ),
            seed=around.seed,
            fabric=self.fabric,
            folder=self.folder / what.replace(" ", "_"),
            identity=self.identity,
            scope="mmseg",
            stage=f"training, {what}",
            report=around.report,
            workers=around.workers,
            micro_batch=self.at_once,
        )
        self.curve, self.seconds = fitted.curve, self.seconds + fitted.seconds
        return model

    def overlaps(self, model: nn.Module, split: Split) -> Overlaps:
        """How a model's predictions overlap with the annotations of a split."""
        from mimbench.openmm.predict import predict
        from protocols.parts.segmentor import Overlap, evaluation_samples, joined

        wanted = {split.sample_id(index): index for index in sampled(len(split))}
        found = predict(
            model,
            evaluation_samples(split, self.names, self.shape),
            Overlap(self.shape, wanted),
            fabric=self.fabric,
            workers=self.around.workers,
            stage=f"segmenting {split.name} images",
            report=self.around.report,
        )
        self.samples = {name: labels for _, kept in found for name, labels in kept.items()}
        return joined([overlaps for overlaps, _ in found])

    def facts(self) -> dict[str, Any]:
        """What the record says of the training."""
        facts: dict[str, Any] = {
            "crop": self.shape.crop,
            "stride": self.shape.stride,
            "steps": self.steps,
            "batch_size": self.protocol.batch_size,
            "images_at_once": self.at_once,
            "training_seconds": self.seconds,
            "trained_encoder_parameters": self.trainable,
        }
        if not self.trainable and not self.protocol.frozen:
            facts["flags"] = ["the encoder has no weights to train: only the head was trained"]
        return facts
