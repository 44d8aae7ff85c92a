"""Weights and training checkpoints on disk: written all or nothing, loaded strictly.

Weights are safetensors files. A training checkpoint is a ``torch.save`` of plain containers and
tensors, read back with ``weights_only=True``, so no file ever runs code.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from mimbench import tensor_files
from mimbench.encoder import Encoder
from mimbench.errors import UserError
from mimbench.files import sha256 as sha256
from mimbench.files import write_atomically
from mimbench.tensor_files import Tensors, finite, open_tensors, shapes
from mimbench.unfilled import unfilled
from mimbench.weights import foreign

FORMAT = 1  # of both kinds of file; raised when an older reader would misread one
ENCODER_FILE = "encoder.safetensors"
CONTAINERS = (("model",), ("state_dict",), ())  # where foreign files keep a state dict


def _refuse_non_finite(name: str, tensor: Tensor, what: str) -> None:
    if not finite(tensor):
        raise UserError(f"tensor {name!r} of {what} holds NaN or infinity; such weights are not usable")


def save_weights(path: Path, module: nn.Module, metadata: Mapping[str, Any]) -> str:
    """Write a module's state dict as safetensors with ``metadata`` under the key ``mimbench``; its sha256.

    Raises UserError for NaN or infinity in a tensor, and for a full disk (the old file then stays).
    """
    state = module.state_dict()

    def read(name: str) -> Tensor:
        _refuse_non_finite(name, state[name], Path(path).name)
        return state[name]

    return write_tensors(path, state, read, metadata)


def write_tensors(
    path: Path, like: Mapping[str, Tensor], read: Callable[[str], Tensor], metadata: Mapping[str, Any]
) -> str:
    """``save_weights`` for tensors that are made one by one: see ``tensor_files.write_tensors``."""
    written = json.dumps({"format": FORMAT, **metadata}, sort_keys=True)
    return tensor_files.write_tensors(Path(path), like, read, {"mimbench": written})


def read_weights(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """Tensors and metadata of a file: ours (safetensors), or a foreign safetensors or PyTorch file.

    Tensors are read when they are asked for. A foreign PyTorch file (``weights.foreign``) runs no code and is
    unwrapped from the usual ``model`` / ``state_dict`` key; its metadata is empty. Raises UserError where
    nothing can be read.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        return foreign.state_dict(foreign.read(path), CONTAINERS, path), {}
    return _read_own(path)


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a safetensors file of ours, {} of a foreign file. UserError as ``read_weights``."""
    if path.suffix == ".safetensors" or not path.is_file():
        return _read_own(path)[1]
    return {}


def _read_own(path: Path) -> tuple[Tensors, dict[str, Any]]:
    if not path.is_file():
        raise UserError(f"no weights file at {path}; check the path")
    try:
        tensors, written = open_tensors(path)
        metadata = json.loads(written.get("mimbench", "{}"))
    except (SafetensorError, json.JSONDecodeError) as error:
        raise UserError(
            f"{path} is not a readable safetensors file ({error}); delete it and make it again"
        ) from error
    if metadata.get("format", FORMAT) > FORMAT:
        raise UserError(
            f"{path} was written by a newer mimbench (format {metadata['format']}, this one reads {FORMAT}); "
            "upgrade mimbench"
        )
    return tensors, metadata


def load_weights(
    module: nn.Module, path: Path, expected_lost: Iterable[str] = (), expected_fresh: Iterable[str] = ()
) -> dict[str, Any]:
    """Load a weights file into ``module`` strictly; the file's metadata.

    expected_lost: prefixes of names the file has and the module may lack ("decoder.").
    expected_fresh: prefixes of names the module has and the file may lack; they keep their values.
    Any other difference, another shape or a non-finite tensor raises UserError that names it.
    """
    state, metadata = read_weights(path)
    load_state(module, state, str(path), expected_lost, expected_fresh)
    return metadata


def load_state(
    module: nn.Module,
    state: Mapping[str, Tensor],
    source: str,
    expected_lost: Iterable[str] = (),
    expected_fresh: Iterable[str] = (),
) -> None:
    """``load_weights`` for a state dict at hand (renamed foreign weights, say) that came from ``source``."""
    lost, fresh = tuple(expected_lost), tuple(expected_fresh)
    own = module.state_dict()
    misfit = f"{source} does not fit {type(module).__name__}"
    given = shapes(state)
    unexpected = sorted(k for k in given if k not in own and not k.startswith(lost))
    missing = sorted(k for k in own if k not in given and not k.startswith(fresh))
    if unexpected or missing:
        parts = [f"lacks {', '.join(missing)}"] * bool(missing)
        parts += [f"has the unexpected {', '.join(unexpected)}"] * bool(unexpected)
        raise UserError(f"{misfit}: it {' and '.join(parts)}; use the matching weights")
    shared = [name for name in own if name in given]
    for name in shared:
        if given[name] != own[name].shape:
            raise UserError(
                f"{misfit}: {name!r} has shape {list(given[name])}, expected {list(own[name].shape)}; "
                "use weights of the same architecture and image size"
            )
    for name in shared:
        _refuse_non_finite(name, state[name], source)
    with torch.no_grad():
        for name in shared:  # one by one: ``Module.load_state_dict`` would hold all of them beside the module
            own[name].copy_(state[name])


def encoder_metadata(encoder: nn.Module, card: Any) -> dict[str, Any]:
    """What ``load_encoder`` needs beside the weights: the backbone's config and the card's facts."""
    return {
        "backbone_config": encoder.config,
        "mean": list(card.mean),
        "std": list(card.std),
        "method": card.key,
        "card_version": card.version,
    }


def load_encoder(path: Path | str) -> Encoder:
    """The sealed encoder of a pre-training product: an ``encoder.safetensors`` or the folder that holds it.

    Raises UserError for a missing or foreign file and for weights that do not fit the named backbone.
    """
    path = Path(path)
    if path.is_dir():
        path = path / ENCODER_FILE
    return encoder_of(*read_weights(path), path)


def encoder_of(state: Mapping[str, Tensor], metadata: Mapping[str, Any], path: Path) -> Encoder:
    """The sealed encoder of what ``read_weights`` found in ``path``."""
    from mimbench.registry import build_backbone

    if not {"backbone_config", "mean", "std"} <= metadata.keys():
        raise UserError(
            f"{path} does not say which backbone it belongs to; give an {ENCODER_FILE} that mimbench wrote"
        )
    backbone = unfilled(lambda: build_backbone(**metadata["backbone_config"]))
    load_state(backbone, state, str(path))
    return Encoder(backbone, metadata["mean"], metadata["std"])


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write a training checkpoint: plain containers, numbers, strings and tensors. Atomic, see above."""

    def write(file: IO[bytes]) -> None:
        guarded = _Remembering(file)
        try:
            torch.save({"format": FORMAT, **content}, guarded)  # type: ignore[arg-type]
        except RuntimeError:  # torch's writer reports a failed write without its cause
            if guarded.error is None:
                raise
            raise guarded.error from None

    write_atomically(Path(path), write)


def load_checkpoint(path: Path, identity: str) -> dict[str, Any] | None:
    """The content of a training checkpoint, on the CPU; None where there is no file.

    Raises UserError when it is damaged, of a newer format, or belongs to another ``identity`` (a hash
    of everything the run depends on).
    """
    path = Path(path)
    if not path.exists():
        return None
    advice = "delete it to train from the start"
    content = _read_torch(path, advice)
    if not isinstance(content, dict) or "identity" not in content:
        raise UserError(f"{path} is not a training checkpoint of mimbench; {advice}")
    if content["format"] > FORMAT:
        raise UserError(
            f"the training checkpoint {path} was written by a newer mimbench; upgrade, or {advice}"
        )
    if content["identity"] != identity:
        raise UserError(
            f"the training checkpoint {path} belongs to a run with other settings or data; {advice}"
        )
    return content


def _read_torch(path: Path, advice: str) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path} cannot be read ({reason}); {advice}") from error


class _Remembering:
    """A file that keeps the OSError of a failed write."""

    def __init__(self, file: IO[bytes]):
        self.file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()
