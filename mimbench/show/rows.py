"""The trained rows of a results folder that pictures are made of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mimbench import checkpoint
from mimbench.api import find_trained
from mimbench.encoder import Encoder
from mimbench.errors import UserError
from mimbench.ledger import FED_ON, Ledger
from mimbench.spec import Job, Readout, Record, Setting
from mimbench.train import METHOD_FILE

if TYPE_CHECKING:
    from mimbench.data import Dataset
    from mimbench.method import Method


@dataclass(frozen=True)
class TrainedRow:
    """One pre-training of a results folder."""

    folder: Path
    record: Record

    @property
    def name(self) -> str:
        return str(self.record.content["variant"])

    @property
    def readout(self) -> Readout:
        """What the authors read off their encoder, from the method's card."""
        from mimbench.evaluate import readout_of

        return readout_of(self.record.content)

    @property
    def setting(self) -> Setting:
        return Setting.model_validate(self.record.content["setting"])

    def encoder(self) -> Encoder:
        """Frozen, on the CPU."""
        return checkpoint.load_encoder(self._weights / FED_ON["pretrain"])

    def method(self, data: Dataset) -> Method:
        """The whole method with its trained weights, in training mode off.

        Raises UserError for released weights, where its weights are gone, or where it learns from weights
        that were given and are not in the results folder.
        """
        from mimbench.work import Workshop

        record = self.record
        if "released" in record.content:
            raise UserError(
                f"of {self.name} there is an encoder alone, no decoder; what it predicts cannot be shown"
            )
        path = self._weights / METHOD_FILE
        if not path.is_file():
            raise UserError(f"the weights of {self.name} are gone from {self._weights}; train it again")
        given = [name for name, of in record.content.get("provided", {}).items() if "sha256" in of]
        if given:
            raise UserError(
                f"{self.name} learns from a {' and a '.join(given)} that was given as a file, which records "
                "do not hold; its encoder can be shown, but not what it predicts"
            )
        job = Job(kind="pretrain", name=record.name, content=record.content, needs=tuple(record.needs))
        shop = Workshop(data, ledger=Ledger(self.folder), setting=self.setting, files={})
        method = shop.method(job)
        checkpoint.load_weights(method, path)
        return method.eval()

    @property
    def _weights(self) -> Path:
        return Ledger(self.folder).weights(self.record.id)


def find_row(folder: Path, name: str, seed: int) -> TrainedRow:
    """The row called ``name`` (or the job of that id). Raises UserError as ``mimbench.load_encoder``."""
    return TrainedRow(folder, find_trained(name, folder, seed))


def jobs_of(rows: Iterable[TrainedRow]) -> dict[str, str]:
    """Id of each row's pre-training -> its name, as ``Sheet.jobs`` wants them."""
    return {row.record.id: row.name for row in rows}
