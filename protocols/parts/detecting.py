"""One evaluation by detection: detectors are trained, one is chosen, and what it finds is judged."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mimbench.monitor import TrainingStopped
from mimbench.openmm.fit import Training, fit
from mimbench.openmm.predict import predict
from mimbench.precision import make_fabric
from mimbench.seeding import seeded_init
from mimbench.selection import Scores
from protocols.parts.coco_metric import Judge
from protocols.parts.detector import build_detector
from protocols.parts.marked import Found, detections, test_samples, training_samples

if TYPE_CHECKING:
    from torch import nn

    from mimbench.data import Dataset, Split
    from mimbench.encoder import Encoder
    from mimbench.protocol import Surroundings
    from protocols.coco import CocoDetection

GLOBAL_BLOCKS = 4  # ViTDet's, of 12 and more
AT_ONCE = 4  # images predicted together
CHANNELS, ROI_SAMPLES, SIDE = 256, 512, 1024  # ViTDet's
LEAST = 64  # of channels and of regions, on small images


class Study:
    """The detectors of one evaluation: training, and what they find."""

    def __init__(
        self,
        protocol: CocoDetection,
        encoder: Encoder,
        data: Dataset,
        around: Surroundings,
        folder: Path,
        side: int,
    ):
        self.protocol, self.encoder, self.data, self.around = protocol, encoder, data, around
        self.folder, self.side = folder, side
        self.fabric = around.fabric or make_fabric("fp32")
        part = min(1.0, side / SIDE)
        self.channels = protocol.channels or max(LEAST, round(CHANNELS * part / 32) * 32)
        self.roi_samples = protocol.roi_samples or max(LEAST, round(ROI_SAMPLES * part**2))
        self.curves: dict[int, list[dict[str, float]]] = {}
        self.notes: list[str] = []
        images = len(data.train) + (len(data.validation) if protocol.train_on != "train" else 0)
        self.steps = protocol.steps or max(
            protocol.min_steps, round(protocol.epochs * images / protocol.batch_size)
        )
        self._best: tuple[float, int, dict[str, torch.Tensor]] | None = None

    def validate(self, split: Split) -> Scores:
        """Box AP of each candidate; NaN of one whose training diverged."""
        judge = Judge(split, self.data.category_ids)
        scores = []
        for number, lr in enumerate(self.protocol.lr):
            try:
                detector = self._train(number, lr)
            except TrainingStopped as error:
                self.notes.append(f"lr {lr:g}: {error}")
                self.curves[number] = []
                scores.append(math.nan)
                continue
            found = self._detect(detector, split, "validating")
            scores.append(max(0.0, float(judge.evaluate(found, "bbox").stats[0])))
            if self._best is None or scores[-1] > self._best[0]:
                self._best = scores[-1], number, _on_host(detector)
        return Scores(scores)

    def train_all(self) -> None:
        """Train the one candidate there is."""
        self._best = 0.0, 0, _on_host(self._train(0, self.protocol.lr[0]))

    def test(self, chosen: int, split: Split) -> tuple[Judge, list[Found]]:
        """What the chosen detector finds in the test images."""
        assert self._best is not None
        assert self._best[1] == chosen
        detector = self._detector().to(self.fabric.device)
        detector.load_state_dict(self._best[2])
        return Judge(split, self.data.category_ids), self._detect(detector, split, "testing")

    def _train(self, number: int, lr: float) -> nn.Module:
        protocol, around = self.protocol, self.around
        splits = [self.data.train]
        if protocol.train_on != "train":
            splits.append(self.data.validation)
        detector = self._detector()
        training = Training(
            steps=self.steps,
            batch_size=protocol.batch_size,
            lr=lr,
            weight_decay=protocol.weight_decay,
            layer_decay=protocol.layer_decay,
            schedule=protocol.schedule(self.steps),
        )
        candidate = f" {number + 1} of {len(protocol.lr)}" if len(protocol.lr) > 1 else ""
        folder = self.folder / f"lr{number}"
        folder.mkdir(parents=True, exist_ok=True)
        fitted = fit(
            detector,
            training_samples(
                splits, image_size=self.side, scale=protocol.scale, masks=bool(self.data.has_masks)
            ),
            training,
            seed=around.seed,
            fabric=self.fabric,
            folder=folder,
            identity={
                "protocol": [protocol.key, protocol.version],
                "fields": asdict(protocol),
                "data": self.data.fingerprint,
                "image_size": self.side,
            },
            scope="mmdet",
            stage=f"training detector{candidate}",
            report=around.report,
            workers=around.workers,
            micro_batch=around.micro_batch,
        )
        self.curves[number] = fitted.curve
        return detector

    def _detector(self) -> nn.Module:
        """A detector on the encoder's weights, otherwise initialised from the seed."""
        backbone, classes = self.encoder.backbone, self.data.classes
        assert classes is not None
        with seeded_init(self.around.seed, "detector"):
            return build_detector(
                backbone.rebuilt(image_size=self.side, drop_path=self.protocol.drop_path),
                width=_width(self.encoder),
                classes=len(classes),
                masks=bool(self.data.has_masks),
                mean=self.encoder.mean.flatten().tolist(),
                std=self.encoder.std.flatten().tolist(),
                window=self.protocol.window,
                global_blocks=global_blocks(backbone.depth),
                channels=self.channels,
                roi_samples=self.roi_samples,
            )

    def _detect(self, detector: nn.Module, split: Split, stage: str) -> list[Found]:
        return predict(
            detector,
            test_samples(split, image_size=self.side),
            detections,
            fabric=self.fabric,
            batch_size=AT_ONCE,
            workers=self.around.workers,
            stage=stage,
            report=self.around.report,
        )


def global_blocks(depth: int) -> tuple[int, ...]:
    """The blocks, from 0, that look at the whole image: 2, 5, 8 and 11 of 12. Of fewer than 12, a third."""
    count = min(GLOBAL_BLOCKS, max(1, depth // 3))
    return tuple((i + 1) * depth // count - 1 for i in range(count))


@torch.no_grad()
def _width(encoder: Encoder) -> int:
    """Channels of the maps, which of raw pixels are not as many as of its class token."""
    image = torch.zeros(1, 3, encoder.image_size, encoder.image_size, device=encoder.mean.device)
    return int(encoder.backbone.maps(image, (-1,))[0].shape[1])


def _on_host(detector: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().clone() for name, value in detector.state_dict().items()}
