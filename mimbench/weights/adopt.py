"""The job of a released row: its encoder, at the size of the images it is shown, among the run's products."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mimbench import checkpoint
from mimbench.cost import Cost, parameters
from mimbench.encoder import Encoder
from mimbench.files import make_folder
from mimbench.registry import build_backbone
from mimbench.seeding import seeded_init
from mimbench.spec import Job, Setting


def adopt(job: Job, path: Path, folder: Path) -> dict[str, Any]:
    """Fields of the record of a job whose encoder is trained already. path: of a converted file."""
    released = job.content["released"]
    size = Setting.model_validate(job.content["setting"]).image_size
    metadata = checkpoint.read_metadata(path)
    encoder = (
        untrained(metadata, job.content["seed"]) if released["untrained"] else checkpoint.load_encoder(path)
    )
    shown = encoder.resized(size)
    metadata = {**metadata, "backbone_config": shown.backbone.config}
    make_folder(folder)
    name = checkpoint.ENCODER_FILE
    count = parameters(shown.backbone)
    return {
        "product": {name: checkpoint.save_weights(folder / name, shown.backbone, metadata)},
        "cost": Cost(parameters_encoder=count, parameters_total=count).content(),
        "facts": {"release": {} if released["untrained"] else metadata.get("release", {})},
    }


def untrained(metadata: Mapping[str, Any], seed: int) -> Encoder:
    """The encoder of a converted file as it would be initialised."""
    with seeded_init(seed), torch.device("cpu"):
        backbone = build_backbone(**metadata["backbone_config"])
    return Encoder(backbone, metadata["mean"], metadata["std"])
