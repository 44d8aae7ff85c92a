"""Frozen features: extracted once, kept on disk, shared by all protocols.

A file holds one single-token readout of one split as float32 [N, D] in NumPy's own format. Its name is a
hash of everything that decides its content: the weights and architecture in memory, the split's
fingerprint, the evaluation transform, the readout, and the precision and device type of the forward pass.

float32 and not float16, although twice as large: features of masked-image models share one long direction
(cosine similarities of 0.99 and more), so what tells two images apart is the small rest, of which
float16's eleven bits would round off a part.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from mimbench.data import evaluation_batches
from mimbench.encoder import Encoder
from mimbench.errors import UserError
from mimbench.files import make_folder, unwritable
from mimbench.precision import precision_of
from mimbench.progress import Progress, silent
from mimbench.protocol import EvaluationFailed
from mimbench.spec import Readout, canonical, content_hash

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from mimbench.data import Split

T = TypeVar("T")

VERSION = 1  # of extraction; raised when the same key would give other numbers


class FeatureStore:
    """Frozen features in ``folder``. Several processes, launched together or not, may share it.

    fabric: gives device, precision and the processes among which a split is dealt out; without it the
    encoder's own device and fp32. workers: processes that decode images ahead.

    Under a fabric of several processes ``get`` is collective: every process calls it with the same
    arguments, and the folder is one that all of them see.
    """

    def __init__(self, folder: Path, fabric: Fabric | None = None, workers: int = 0):
        self.folder, self.fabric, self.workers = Path(folder), fabric, workers
        self._first = fabric is None or fabric.is_global_zero
        self._alone = fabric is None or fabric.world_size == 1

    def get(
        self,
        encoder: Encoder,
        split: Split,
        readouts: Sequence[Readout],
        *,
        crop_pct: float,
        batch_size: int = 64,
        report: Callable[[Progress], None] = silent,
    ) -> dict[Readout, np.ndarray]:
        """Features float32 [N, D] of each readout, in the order of the split; do not write into them.

        What is not on disk yet is extracted in one pass over the images. Single-token readouts are memory
        maps; ``cls+mean`` is put together from its parts. ``batch_size`` is a process's own.

        Raises EvaluationFailed for features that are not finite or the same for every image, UserError
        for a folder that cannot be written.
        """
        parts = list(dict.fromkeys(part for readout in readouts for part in readout.parts))
        weights = weights_sha256(encoder)
        folder = self.folder / weights[:16]
        paths = {
            part: folder / f"{self._key(weights, encoder, split, part, crop_pct)}.npy"
            for part in [*parts, *map(_twin, parts)]
        }

        def to_extract() -> list[Readout]:
            missing = [part for part in parts if not _whole(paths[part], len(split))]
            # One pass for all protocols: of the last block, the probe reads what went through the final
            # norm, k-NN also what did not.
            twins = [_twin(part) for part in missing if part.layer == -1]
            missing += [twin for twin in twins if not _whole(paths[twin], len(split))]
            return list(dict.fromkeys(missing))

        with self._lock(folder, split):
            missing = self._on_first(to_extract)
            if missing:
                targets = {part: paths[part] for part in missing}
                self._extract(encoder, split, targets, crop_pct, batch_size, report)
        # "c": nothing is ever written, but torch warns about read-only memory
        arrays = {part: np.load(paths[part], mmap_mode="c") for part in parts}
        return {
            readout: arrays[readout]
            if len(readout.parts) == 1
            else np.concatenate([arrays[part] for part in readout.parts], axis=1)
            for readout in readouts
        }

    def _device(self, encoder: Encoder) -> torch.device:
        return self.fabric.device if self.fabric else encoder.mean.device

    def _key(self, weights: str, encoder: Encoder, split: Split, part: Readout, crop_pct: float) -> str:
        return content_hash(
            {
                "version": VERSION,
                "weights": weights,
                "split": split.fingerprint,
                "image_size": encoder.image_size,
                "crop_pct": crop_pct,
                "readout": part.content(),
                "precision": precision_of(self.fabric) if self.fabric else "fp32",
                "device": self._device(encoder).type,
            },
            length=32,
        )

    @contextmanager
    def _lock(self, folder: Path, split: Split) -> Iterator[None]:
        """Held by the first process of a group: whoever else wants these features waits for them."""
        if not self._first:
            yield
            return
        make_folder(folder)
        with FileLock(folder / f"{split.fingerprint[:16]}.lock"):
            yield

    def _on_first(self, work: Callable[[], T]) -> T:
        """Do ``work`` on the first process; its result or its error comes out of all of them."""
        if self._alone:
            return work()
        outcome: tuple[Any, Exception | None] = (None, None)
        if self._first:
            try:
                outcome = (work(), None)
            except (UserError, EvaluationFailed) as error:
                outcome = (None, error)
        assert self.fabric is not None
        result, mistake = self.fabric.broadcast(outcome)
        if mistake is not None:
            raise mistake
        return result

    def _extract(
        self,
        encoder: Encoder,
        split: Split,
        paths: dict[Readout, Path],
        crop_pct: float,
        batch_size: int,
        report: Callable[[Progress], None],
    ) -> None:
        """Write the features of each readout, or raise and leave nothing behind."""
        started, done = time.monotonic(), 0
        mistake: Exception | None = None
        with ExitStack() as stack:
            files = {
                part: stack.enter_context(_FeatureFile(path, len(split))) for part, path in paths.items()
            }
            for blocks in self._blocks(encoder, split, list(paths), crop_pct, batch_size):
                if self._first and mistake is None:
                    try:
                        for part, block in blocks.items():
                            files[part].add(block)
                    except (UserError, EvaluationFailed) as error:
                        if self._alone:
                            raise
                        mistake = error  # the others still take part in the exchange; told at its end
                done += len(next(iter(blocks.values())))
                seconds = max(time.monotonic() - started, 1e-9)
                report(
                    Progress(
                        stage="extracting features",
                        done=done / len(split),
                        rate=done / seconds,
                        seconds_left=seconds / done * (len(split) - done),
                    )
                )

            def commit() -> None:
                if mistake is not None:
                    raise mistake
                for part, file in files.items():
                    file.commit(f"{part.label} features of the {split.name} split")

            self._on_first(commit)

    def _blocks(
        self, encoder: Encoder, split: Split, parts: list[Readout], crop_pct: float, batch_size: int
    ) -> Iterator[dict[Readout, np.ndarray]]:
        """Consecutive rows of the features, the same on every process.

        Every forward pass has the same shape: the last batch is filled up with copies, whose features are
        dropped. So a sample's features do not depend on who else is in its batch or on the number of
        processes, bit for bit (kernels are chosen by shape).
        """
        rank, world = (self.fabric.global_rank, self.fabric.world_size) if self.fabric else (0, 1)
        device = self._device(encoder)
        encoder.to(device)
        batches = evaluation_batches(
            split,
            image_size=encoder.image_size,
            crop_pct=crop_pct,
            batch_size=batch_size,
            rank=rank,
            world=world,
            workers=self.workers,
        )
        fallback = torch.zeros(1, 3, encoder.image_size, encoder.image_size, dtype=torch.uint8)
        for start in range(0, len(split), batch_size * world):
            _, images = next(batches, (None, fallback))  # a rank may have no sample in the last round
            if len(images) < batch_size:
                images = torch.cat([images, images[-1:].expand(batch_size - len(images), -1, -1, -1)])
            with self.fabric.autocast() if self.fabric else nullcontext():
                vectors = encoder.readouts(images.to(device, non_blocking=True), parts)
            flat = torch.cat([vectors[part].float() for part in parts], dim=1)
            if world > 1:
                assert self.fabric is not None
                gathered: Any = self.fabric.all_gather(flat)  # [world, b, D]
                flat = gathered.transpose(0, 1).flatten(0, 1)  # rank r holds every world-th sample from r on
            rows = flat[: len(split) - start].cpu()
            widths = [vectors[part].shape[1] for part in parts]
            yield {part: x.numpy() for part, x in zip(parts, rows.split(widths, dim=1), strict=True)}


class _FeatureFile:
    """A ``.npy`` file of ``rows`` rows that is written block by block and appears whole or not at all."""

    def __init__(self, path: Path, rows: int):
        self.path, self.rows = path, rows
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
        self._file: Any = None
        self._lowest = self._highest = np.empty(0)

    def __enter__(self) -> _FeatureFile:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with suppress(OSError):  # of a full disk; what raised it is on its way
                self._file.close()
            self._temporary.unlink(missing_ok=True)

    def add(self, block: np.ndarray) -> None:
        """Append float32 rows [b, D]. Raises UserError for a full disk."""
        low, high = block.min(0), block.max(0)
        try:
            if self._file is None:
                self._lowest, self._highest = low, high
                self._file = open(self._temporary, "wb")  # noqa: SIM115, closed in __exit__
                facts = {"descr": "<f4", "fortran_order": False, "shape": (self.rows, block.shape[1])}
                np.lib.format.write_array_header_1_0(self._file, facts)
            self._file.write(np.ascontiguousarray(block, "<f4").tobytes())
        except OSError as error:
            raise unwritable(self.path, error) from error
        # minimum and maximum carry NaN on, so one look at the end suffices
        self._lowest, self._highest = np.minimum(self._lowest, low), np.maximum(self._highest, high)

    def commit(self, what: str) -> None:
        """Check the features and let the file appear. ``what`` names them for messages."""
        if not (np.isfinite(self._lowest).all() and np.isfinite(self._highest).all()):
            raise EvaluationFailed(
                f"the {what} are not all finite; the weights are broken or the training diverged"
            )
        if self.rows > 1 and np.array_equal(self._lowest, self._highest):
            raise EvaluationFailed(
                f"the {what} are the same for all {self.rows} images; the encoder has collapsed"
            )
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._temporary, self.path)
        except OSError as error:
            raise unwritable(self.path, error) from error


def _whole(path: Path, rows: int) -> bool:
    """Whether ``path`` holds ``rows`` rows of features; a damaged file counts as not there."""
    try:
        found = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return False
    return found.ndim == 2 and len(found) == rows and found.dtype == np.float32


def weights_sha256(encoder: Encoder) -> str:
    """SHA-256 hex over an encoder's architecture, input normalisation and every weight in memory."""
    digest = hashlib.sha256(canonical(encoder.backbone.config).encode())
    state: dict[str, Tensor] = {
        **encoder.backbone.state_dict(),
        "mimbench.mean": encoder.mean,
        "mimbench.std": encoder.std,
    }
    for name, tensor in sorted(state.items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _twin(part: Readout) -> Readout:
    """The same token of the same block, with the final norm where ``part`` has none, and the other way."""
    return part.model_copy(update={"norm": "raw" if part.norm == "final" else "final"})
