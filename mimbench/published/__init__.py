"""Published figures: what papers and their code report, each with its source. Imports no torch.

``load()`` reads ``published.csv`` beside this file, one row a figure:

- ``key``: the method as ``mimbench methods`` lists it, or a name of the same form where it has none
  (``implemented`` no); ``variant``: what sets the method apart from its usual form; ``measured_by``:
  "authors" of the method, somebody else by name, or empty where a source quotes a figure.
- ``backbone`` in the source's words, ``backbone_key`` in this project's; ``image_size`` in pixels, where the
  source names one; ``pretrain_data``; ``external``: tokenizer, teacher or labels; ``epochs`` of pre-training.
- ``evaluated_on``; ``protocol`` in words; ``protocol_key``: the protocol here that means the same, with the
  official recipe after a colon where that was followed, empty where none does; ``chosen_on``: images by
  which the best epoch or hyper-parameters were chosen, "test" or "validation", empty where not known.
- ``metric`` as the protocol calls it; ``value`` in percent.
- ``source`` and ``url``; ``confidence`` (see ``CONFIDENCE``); ``disagrees``: another row gives another value
  for the same thing; both are kept; ``note``.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterable
from functools import cache
from importlib.resources import files
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError

from mimbench.errors import UserError, unknown
from mimbench.spec import Frozen

if TYPE_CHECKING:
    import pandas as pd

CONFIDENCE = {
    "high": "read in the paper's own text, or in files of those who measured it",
    "medium": "quoted by somebody else than who measured it, or the protocol leaves something open",
    "low": "not checked against its source",
}


def _empty_is_none(value: Any) -> Any:
    return None if value == "" else value


Flag = Annotated[bool, BeforeValidator(lambda value: {"": False, "no": False, "yes": True}.get(value, value))]


class Figure(Frozen):
    """One published number and what it is known to stand for."""

    method: str = Field(min_length=1)  # its name
    key: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    implemented: Flag = True
    variant: str = ""
    measured_by: str = ""
    backbone: str = Field(min_length=1)
    backbone_key: str = ""
    image_size: Annotated[Annotated[int, Field(gt=0)] | None, BeforeValidator(_empty_is_none)] = None  # px
    pretrain_data: str = ""
    external: str = ""
    epochs: Annotated[Annotated[float, Field(gt=0)] | None, BeforeValidator(_empty_is_none)] = None
    evaluated_on: str = Field(min_length=1)
    protocol: str = Field(min_length=1)
    protocol_key: str = Field("", pattern=r"^([a-z0-9]+(:[a-z0-9-]+)?)?$")
    chosen_on: Literal["test", "validation", ""] = ""
    metric: str = Field(min_length=1)
    value: float = Field(ge=0, le=100, allow_inf_nan=False)  # percent
    source: str = Field(min_length=1)
    url: str = Field("", pattern=r"^(https?://\S+)?$")
    confidence: Literal["high", "medium", "low"] = "medium"
    disagrees: Flag = False
    note: str = ""

    @property
    def protocol_base(self) -> str:
        """The protocol without its recipe: "linprobe" of "linprobe:mae"."""
        return self.protocol_key.partition(":")[0]

    @property
    def name(self) -> str:
        """The method with what sets it apart."""
        return f"{self.method} ({self.variant})" if self.variant else self.method

    @property
    def setting(self) -> str:
        """Backbone, data and epochs as far as known: "ViT-B/16, ImageNet-1K, 1600 epochs"."""
        epochs = f"{self.epochs:g} epochs" if self.epochs else ""
        pixels = f"{self.image_size} px" if self.image_size else ""
        return ", ".join(part for part in (self.backbone, pixels, self.pretrain_data, epochs) if part)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What to know of the source: who measured it where its authors did not, doubts, notes."""
        by = self.measured_by
        return tuple(
            remark
            for remark in (
                "" if by == "authors" else f"measured by {by}" if by else "quoted from elsewhere",
                "" if self.confidence == "high" else f"confidence {self.confidence}",
                "sources disagree" if self.disagrees else "",
                self.note,
            )
            if remark
        )


def load(path: Path | str | None = None) -> tuple[Figure, ...]:
    """All figures, in the order of the file.

    path: another file of the same columns; by default the one shipped. Raises UserError where it cannot be
    read, and for a row that breaks the rules above, naming its line.
    """
    return _shipped() if path is None else _parse(_read(Path(path)), str(path))


@cache
def _shipped() -> tuple[Figure, ...]:
    text = (files(__name__) / "published.csv").read_text(encoding="utf-8")
    return _parse(text, "published.csv")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(
            f"cannot read the figures in {path}: {error.strerror or error}; check the path"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"the figures in {path} are not UTF-8; save the file as CSV in UTF-8") from error


def _parse(text: str, where: str) -> tuple[Figure, ...]:
    reader = csv.DictReader(StringIO(text, newline=""))
    found = []
    try:
        for row in reader:
            # A row longer than the header has its rest under None, a shorter one None for what it lacks.
            given = {str(name): value for name, value in row.items() if value is not None}
            found.append(Figure.model_validate(given))
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"line {reader.line_num} of {where}: {'.'.join(map(str, first['loc']))}: {first['msg']}; correct "
            f"it (columns are {', '.join(Figure.model_fields)})"
        ) from error
    except csv.Error as error:
        raise UserError(f"line {reader.line_num} of {where} is no CSV ({error}); correct it") from error
    return tuple(found)


def find(
    figures: Iterable[Figure], *, methods: Collection[str] = (), protocol: str = "", metric: str = ""
) -> list[Figure]:
    """The figures of these methods' keys, of a protocol ("linprobe" finds its recipes too) and a metric.

    Raises UnknownNameError for what no figure has, with near matches.
    """
    found = list(figures)
    for kind, names, known in (
        ("method with published figures", methods, {f.key for f in found}),
        (
            "protocol with published figures",
            [protocol] if protocol else [],
            {f.protocol_key for f in found} | {f.protocol_base for f in found} - {""},
        ),
        ("metric with published figures", [metric] if metric else [], {f.metric for f in found}),
    ):
        for name in names:
            if name not in known:
                raise unknown(kind, name, known - {""})
    return [
        f
        for f in found
        if (not methods or f.key in methods)
        and (not protocol or protocol in (f.protocol_key, f.protocol_base))
        and (not metric or f.metric == metric)
    ]


def frame(figures: Iterable[Figure]) -> pd.DataFrame:
    """The figures as a DataFrame, one row each, with the columns of the file."""
    import pandas as pd

    return pd.DataFrame([f.model_dump() for f in figures], columns=list(Figure.model_fields))
