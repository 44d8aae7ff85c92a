"""What a repetition needs beside the record: its images and, where they are reused, its weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimbench import checkpoint, records
from mimbench.errors import UserError
from mimbench.files import make_folder
from mimbench.ledger import FED_ON, Ledger
from mimbench.progress import Progress
from mimbench.repro.locate import Located
from mimbench.spec import Record, Setting

if TYPE_CHECKING:
    from mimbench.data import Dataset
    from mimbench.plan import Plan


def open_data(
    found: Located, specs: Sequence[str], report: Callable[[Progress], None]
) -> tuple[Dataset, ...]:
    """The data that a record was made of, the pre-training's first; recognised by their content.

    specs: where they are; by default what the folder's requests say, then the names in the record.
    Raises UserError where they cannot be opened or hold other images.
    """
    record = found.record
    setting = Setting.model_validate(record.content["setting"])
    wanted = {setting.fingerprint: setting.data}
    if other := record.content.get("data"):
        wanted[other["fingerprint"]] = other["name"]
    opened: dict[str, Dataset] = {}
    refused: list[str] = []
    for spec in specs or _likely(found, wanted.values()):
        if wanted.keys() <= opened.keys():
            break
        try:
            data = _open(spec, setting.image_size, record, report)
        except UserError as error:
            if specs:
                raise
            refused.append(f"{spec}: {error}")
            continue
        if data.fingerprint not in wanted:
            refused.append(_other(spec, data, record, wanted))
        opened[data.fingerprint] = data
    if missing := [name for fingerprint, name in wanted.items() if fingerprint not in opened]:
        why = "; ".join(refused) or "none of the data given are those"
        raise UserError(
            f"{record.name} was made with {' and '.join(missing)}, not found here ({why}); "
            "say where it is with --data SPEC"
        )
    return tuple(opened[fingerprint] for fingerprint in wanted)


def _likely(found: Located, names: Any) -> Iterator[str]:
    asked = found.asked
    given = list(asked.options.get("data", ())) if asked else []
    return iter(dict.fromkeys([*given, *names]))


def _open(spec: str, size: int, record: Record, report: Callable[[Progress], None]) -> Dataset:
    """As the run opened them: with an image size of its own, or with the data's."""
    from mimbench.data import open_dataset

    skip = bool(record.data.get("skipped"))
    data = open_dataset(spec, image_size=size, skip_broken=skip, report=report)
    kept = record.data.get("store_side")
    if data.fingerprint == record.data.get("fingerprint") and data.describe()["store_side"] != kept:
        again = open_dataset(spec, skip_broken=skip, report=report)
        return again if again.describe()["store_side"] == kept else data
    return data


def _other(spec: str, data: Dataset, record: Record, wanted: dict[str, str]) -> str:
    """How data that are not the record's differ from them."""
    described = data.describe()
    then, now = record.data.get("fingerprints", {}), described["fingerprints"]
    parts = [name for name in now if then.get(name) != now[name]]
    sizes = described["sizes"]
    told = ", ".join(
        f"{name} {record.data.get('sizes', {}).get(name, '?')} images then, {sizes[name]} here"
        for name in parts
    )
    return (
        f"{spec} holds other images: fingerprint {data.fingerprint[:8]}…, in the record "
        f"{' and '.join(f'{f[:8]}…' for f in wanted)}" + (f" ({told})" if told and then else "")
    )


def hashes(paths: Sequence[Path]) -> dict[str, Path]:
    """Weights files, or those of jobs' folders, by sha256. Raises UserError for one that is not there."""
    found = {}
    for path in paths:
        path = path / checkpoint.ENCODER_FILE if path.is_dir() else path
        if not path.is_file():
            raise UserError(f"no weights file at {path}; check the path")
        found[checkpoint.sha256(path)] = path
    return found


def reuse_weights(found: Located, chain: Plan, weights: Path, ledger: Ledger) -> None:
    """Put the weights that a record was made from, and the records of their making, into a scratch folder.

    weights: the results folder that holds them, the folder of that job, or the file itself.
    Raises UserError where they are not those that the record names.
    """
    record = found.record
    if record.kind != "evaluate" or not record.needs:
        raise UserError(
            f"{record.name} is no finished evaluation: it was made from no weights that could be reused; "
            "leave out --weights"
        )
    ((need, sha256),) = record.needs.items()
    if need not in {job.id for job in chain}:
        raise UserError(
            f"today's code asks for another pre-training than the {need} that {record.name} was made from; "
            "leave out --weights to train anew"
        )
    name = FED_ON["pretrain"]
    places = [weights, weights / name, weights / need / name, Ledger(weights).weights(need) / name]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise UserError(
            f"no weights of job {need} in {weights}; name the results folder, the job's folder or the "
            f"{name} itself, or leave out --weights to train anew"
        )
    here = checkpoint.sha256(file)
    if here != sha256:
        raise UserError(
            f"{file} is not what {record.name} was made from: its sha256 is {here[:8]}…, the record says "
            f"{sha256[:8]}…; the file was replaced or changed, find the right one or leave out --weights"
        )
    folder = make_folder(ledger.weights(need))
    shutil.copyfile(file, folder / name)
    make_folder(ledger.folder / "records")
    for job in chain:
        if job.id == chain.jobs[-1].id:
            continue
        before = found.beside(job.id)
        if before is None:
            raise UserError(
                f"the record of {job.name} ({job.id}.json) is not beside {found.path}; copy it there, "
                "or leave out --weights to train anew"
            )
        records.write(ledger.folder, before.record)
        if job.id == need:
            for extra, wanted in before.record.product.items():
                source = file.with_name(extra)
                if extra != name and source.is_file() and checkpoint.sha256(source) == wanted:
                    shutil.copyfile(source, folder / extra)
