"""The job of a released row: its encoder, at the size of the images it is shown, among the run's products."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from mimbench import checkpoint
from mimbench.cost import Cost, measuring, parameters
from mimbench.encoder import Encoder
from mimbench.evaluate import readout_of
from mimbench.files import make_folder, write_atomically
from mimbench.registry import build_backbone
from mimbench.spec import Job, Setting, canonical
from mimbench.weights.audit import audit, untrained
from mimbench.weights.given import release_of
from mimbench.weights.release import card_of


def adopt(job: Job, path: Path, folder: Path, device: torch.device) -> dict[str, Any]:
    """Fields of the record of a job whose encoder is trained already. path: of a file of ours."""
    size = Setting.model_validate(job.content["setting"]).image_size
    metadata = checkpoint.read_metadata(path)
    make_folder(folder)
    if job.content["released"]["untrained"]:
        config, mean, std = (metadata[name] for name in ("backbone_config", "mean", "std"))
        shown = untrained(config, mean, std, job.content["seed"]).resized(size)
        kept = {name: value for name, value in metadata.items() if name not in ("release", "readout")}
        return {
            "product": _written(shown, {**kept, "method": "random"}, folder),
            "cost": {**Cost(**_parameters(shown)).content(), "encoder_flops": _flops(shown)},
            "facts": {"card": card_of("random", {})},
        }
    release = release_of(path, metadata)
    encoder = checkpoint.load_encoder(path)
    shown = encoder.resized(size)
    product = _placed(path, folder) if shown is encoder else _written(shown, metadata, folder)
    # What its pre-training took is not known here, so nothing is said of it: a 0 would be a figure.
    cost = {**_parameters(shown), "encoder_flops": _flops(shown)}
    seen = audit(shown.to(device), readout_of(job.content))
    return {
        "product": product,
        "cost": cost,
        "facts": {
            "release": release,
            "tensors_sha256": _tensors_sha256(folder / checkpoint.ENCODER_FILE),
            "card": card_of(metadata["method"], release),
            "audit": seen.content(),
            "flags": list(seen.flags),
        },
    }


def check_size(job: Job) -> None:
    """Raise UserError where the encoder of a job cannot be shown images of the setting's size."""
    config, size = job.content["released"]["backbone_config"], job.content["setting"]["image_size"]
    if size != config["image_size"]:
        with torch.device("meta"):
            build_backbone(**{**config, "image_size": size})


def _written(encoder: Encoder, metadata: dict[str, Any], folder: Path) -> dict[str, str]:
    name = checkpoint.ENCODER_FILE
    metadata = {**metadata, "backbone_config": encoder.backbone.config}
    return {name: checkpoint.save_weights(folder / name, encoder.backbone, metadata)}


def _placed(path: Path, folder: Path) -> dict[str, str]:
    """The very file, under a second name where the file system can: large ones are not kept twice."""
    target = folder / checkpoint.ENCODER_FILE
    target.unlink(missing_ok=True)
    try:
        os.link(path, target)
    except OSError:  # another file system, or one without such links
        with open(path, "rb") as file:
            write_atomically(target, lambda copy: shutil.copyfileobj(file, copy))
    return {target.name: checkpoint.sha256(target)}


def _tensors_sha256(path: Path) -> str:
    """Of a safetensors file without what its header tells beside the tensors, which may be put right later.

    The file is the header's length (8 bytes, little endian), the header (JSON) and the tensors' bytes.
    """
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        header.pop("__metadata__", None)
        digest = hashlib.sha256(canonical(header).encode())
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _parameters(encoder: Encoder) -> dict[str, int]:
    count = parameters(encoder.backbone)
    return {"parameters_encoder": count, "parameters_total": count}


def _flops(encoder: Encoder) -> float:
    """What one image takes; a multiply-add is two."""
    with measuring(encoder.backbone) as counted:
        encoder(torch.zeros(1, 3, encoder.image_size, encoder.image_size))
    return counted.flops
