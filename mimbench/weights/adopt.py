"""The job of a released row: its encoder, at the size of the images it is shown, among the run's products."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mimbench import checkpoint
from mimbench.cost import Cost, parameters
from mimbench.encoder import Encoder
from mimbench.evaluate import readout_of
from mimbench.files import make_folder
from mimbench.spec import Job, Readout, Setting
from mimbench.weights.audit import audit, untrained


def adopt(job: Job, path: Path, folder: Path, device: torch.device) -> dict[str, Any]:
    """Fields of the record of a job whose encoder is trained already. path: of a converted file."""
    released = job.content["released"]
    size = Setting.model_validate(job.content["setting"]).image_size
    metadata = checkpoint.read_metadata(path)
    if released["untrained"]:
        config, mean, std = (metadata[name] for name in ("backbone_config", "mean", "std"))
        encoder = untrained(config, mean, std, job.content["seed"])
    else:
        encoder = checkpoint.load_encoder(path)
    shown = encoder.resized(size)
    metadata = {**metadata, "backbone_config": shown.backbone.config}
    make_folder(folder)
    name = checkpoint.ENCODER_FILE
    count = parameters(shown.backbone)
    return {
        "product": {name: checkpoint.save_weights(folder / name, shown.backbone, metadata)},
        "cost": Cost(parameters_encoder=count, parameters_total=count).content(),
        "facts": {} if released["untrained"] else _facts(shown, metadata, readout_of(job.content), device),
    }


def _facts(
    encoder: Encoder, metadata: Mapping[str, Any], readout: Readout, device: torch.device
) -> dict[str, Any]:
    """Where the weights come from, what of the file was used, and what their tokens look like."""
    return {
        "release": metadata.get("release", {}),
        "audit": audit(encoder.to(device), readout).content(),
    }
