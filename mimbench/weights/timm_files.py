"""Weights of timm, by its names or out of a repository in its format, as files of ours.

timm reads the file, with its own filters for other layouts, into its own model, strictly and with its
classifier; what our backbone has of that model is then written, and the rest is named as dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mimbench.torchvision_compat  # noqa: F401  isort: skip
import timm
from safetensors import safe_open

from mimbench import checkpoint, download
from mimbench.errors import UserError
from mimbench.files import sha256
from mimbench.registry import build_backbone
from mimbench.spec import IMAGENET_MEAN, IMAGENET_STD, Readout
from mimbench.tensor_files import finite
from mimbench.weights import foreign, hub
from mimbench.weights.timm_facts import NOTES, arxiv_of, told

ORIGIN, VERSION = "timm", 1  # as of ``Origin``
HEAD = "the classifier, and what timm has before it after pooling"
FRESH = "the file has no last norm, so the encoder is built without one"


@dataclass(frozen=True)
class TimmWeights:
    """Weights that timm can read.

    name: as the user wrote it. settings: timm's ``pretrained_cfg``. model_args: of timm's class.
    place: the repository on the hub, None where the file lies at an address.
    """

    name: str
    architecture: str
    tag: str
    settings: Mapping[str, Any]
    model_args: Mapping[str, Any]
    place: hub.Place | None

    @property
    def image_size(self) -> int:
        if self.settings.get("fixed_input_size") or "img_size" not in self.model_args:
            return int(self.settings.get("input_size", (3, 224, 224))[-1])
        return int(self.model_args["img_size"])

    @property
    def config(self) -> dict[str, Any]:
        """The arguments of ``registry.build_backbone``."""
        args = {k: v for k, v in self.model_args.items() if k not in ("img_size", "num_classes")}
        named = f"{ORIGIN}:{self.architecture}"
        return {"name": named, "image_size": self.image_size, **({"model_args": args} if args else {})}


def by_name(name: str) -> TimmWeights:
    """timm's weights ``name``, such as ``vit_base_patch16_224.mae``; UserError where timm has none."""
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        near = timm.list_pretrained(f"*{architecture[:12]}*")[:3]
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise UserError(f"timm has no model {name!r}{hint}")
    try:
        found = timm.get_pretrained_cfg(name)
    except RuntimeError:  # a tag that the model does not have
        found = None
    if found is None or not found.has_weights:
        tags = timm.list_pretrained(f"{architecture}.*")[:6]
        hint = f"name one of {', '.join(tags)}" if tags else "name another model"
        raise UserError(f"timm has no weights for {name}; {hint}")
    settings = found.to_dict()
    place = None
    if found.hf_hub_id:
        repo, _, revision = found.hf_hub_id.partition("@")
        place = hub.Place(repo, revision or "main")
    return TimmWeights(name, architecture, found.tag or name.partition(".")[2], settings, {}, place)


def in_repository(place: hub.Place, config: Mapping[str, Any]) -> TimmWeights:
    """The weights of a repository in timm's format, whose ``config.json`` is ``config``."""
    architecture = str(config["architecture"])
    if not timm.is_model(architecture):
        raise UserError(
            f"{place} holds a model of timm called {architecture}, which timm {timm.__version__} does not "
            "know; upgrade timm"
        )
    settings = {**config.get("pretrained_cfg", {})}
    settings.setdefault("num_classes", config.get("num_classes", 0))
    args = dict(config.get("model_args") or {})
    if "global_pool" in config:
        args.setdefault("global_pool", config["global_pool"])
    # anyone may save a model under the tag of the settings it was made with; timm's own are what they say
    tag = str(settings.get("tag", "")) if place.repo.startswith("timm/") else ""
    weights = TimmWeights(str(place), architecture, tag, settings, args, place)
    return replace(weights, model_args={k: v for k, v in args.items() if k != "num_classes"})


def obtain(weights: TimmWeights) -> hub.HubFile:
    """The file of weights, out of the cache of whoever fetches it."""
    settings = weights.settings
    if weights.place is not None:
        named = weights.place.file or settings.get("hf_hub_filename")
        return hub.fetch_first(weights.place, (named,) if named else hub.WEIGHTS)
    if settings.get("url"):
        return hub.HubFile(download.fetch(settings["url"]), "")
    raise UserError(
        f"timm says no place for the weights of {weights.name}; give a file that timm writes as file:PATH"
    )


def convert(weights: TimmWeights, target: Path) -> None:
    """Fetch weights of timm and write their encoder to ``target``."""
    file = obtain(weights)
    model = _loaded(weights, file.path)
    state = model.state_dict()
    config = weights.config
    with torch.device("meta"):
        backbone = build_backbone(**config)
    needed = {name: backbone.timm_name(name) for name in backbone.state_dict()}
    fresh = _not_in(file.path, needed, weights)
    if fresh:
        config["final_norm"] = False
        needed = {ours: theirs for ours, theirs in needed.items() if theirs not in fresh}
        with torch.device("meta"):
            backbone = build_backbone(**config)
    known = told(weights.architecture, weights.tag, int(weights.settings.get("num_classes") or 0))
    pooled = getattr(model, "global_pool", "avg")
    token = "cls" if backbone.config["cls_token"] and pooled == "token" else "mean"
    used = list(needed.values())
    metadata = {
        "backbone_config": backbone.config,
        "mean": list(weights.settings.get("mean") or IMAGENET_MEAN),
        "std": list(weights.settings.get("std") or IMAGENET_STD),
        "method": known.method,
        "readout": Readout(token=token).content(),  # type: ignore[arg-type]
        "release": {
            "name": weights.name,
            "title": weights.name,
            "arxiv": arxiv_of(weights.settings.get("paper_ids")),
            "data": known.data,
            "epochs": None,
            "image_size": weights.image_size,
            "external": known.external,
            "labels": known.labels,
            "learned_from": known.learned_from,
            "licence": weights.settings.get("license") or "",
            "url": _address(weights),
            "revision": file.commit,
            "source": f"timm {timm.__version__}",
            "notes": NOTES.get(weights.tag, ""),
            "num_classes": int(weights.settings.get("num_classes") or 0),
            "file": file.path.name,
            "file_sha256": sha256(file.path),
            "origin": ORIGIN,
            "origin_version": VERSION,
            "used": used,
            "dropped": dict.fromkeys(sorted(state.keys() - set(used) - fresh), HEAD),
            "fresh": dict.fromkeys(sorted(fresh), FRESH),
        },
    }

    def read(ours: str) -> Tensor:
        tensor = state[needed[ours]].detach()
        if not finite(tensor):
            raise UserError(
                f"tensor {needed[ours]!r} of {file.path.name} holds NaN or infinity; it is not usable"
            )
        return tensor.float() if tensor.is_floating_point() else tensor

    checkpoint.write_tensors(target, backbone.state_dict(), read, metadata)


def _loaded(weights: TimmWeights, path: Path) -> torch.nn.Module:
    """timm's model with its classifier and with what is in the file; strictly, as timm does it then."""
    overlay: dict[str, Any] = {"source": "timm", "hf_hub_id": None, "url": None, "custom_load": False}
    if path.suffix in (".safetensors", ".npz"):
        overlay |= {"file": str(path), "custom_load": path.suffix == ".npz"}
    else:  # timm would unpickle it, whatever it does
        overlay["state_dict"] = _tensors(foreign.read(path))
    name = weights.architecture
    if weights.name.startswith("hf:"):
        how: dict[str, Any] = {"pretrained_cfg": {**weights.settings, "architecture": name, **overlay}}
    else:
        name += f".{weights.tag}" * bool(weights.tag)
        how = {"pretrained_cfg_overlay": overlay}
    try:
        return timm.create_model(name, pretrained=True, **how, **weights.model_args).eval()
    except (RuntimeError, ValueError, LookupError, TypeError, AssertionError, OSError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(
            f"timm cannot load {path.name} into {weights.architecture} ({reason}); the file is not of that "
            "model"
        ) from error


def _not_in(path: Path, needed: Mapping[str, str], weights: TimmWeights) -> set[str]:
    """Tensors of the model that a file in timm's own layout lacks; UserError for any but the last norm's.

    timm leaves a few models' files unchecked, such as those of ConvNeXt V2's pre-training.
    """
    if path.suffix != ".safetensors":
        return set()
    with safe_open(path, framework="pt") as file:
        there = set(file.keys())
    missing = {theirs for theirs in needed.values() if theirs not in there}
    if len(missing) > len(needed) / 2:
        return set()  # of another layout, whose names timm's filter changes
    last = {theirs for ours, theirs in needed.items() if ours.startswith("norm.")}
    if missing - last:
        raise UserError(
            f"{path.name} of {weights.name} lacks {', '.join(sorted(missing - last)[:8])} of "
            f"{weights.architecture}; it is not of that model"
        )
    return missing


def _tensors(content: Any) -> dict[str, Any]:
    """What of a file's content is tensors, in the containers they lie in, which timm's filters know."""
    found = {}
    for name, value in content.items() if isinstance(content, Mapping) else ():
        if isinstance(value, Tensor):
            found[str(name)] = value
        elif isinstance(value, Mapping) and (inner := _tensors(value)):
            found[str(name)] = inner
    return found


def _address(weights: TimmWeights) -> str:
    if weights.place is not None:
        return f"https://huggingface.co/{weights.place.repo}"
    return str(weights.settings.get("url") or "")
