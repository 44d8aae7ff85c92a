"""What a user asks for: one model behind the command line, the YAML file and ``mimbench.run``.

Names and defaults stand here once; a test holds the three against each other. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from mimbench import settings
from mimbench.errors import UserError, unknown
from mimbench.spec import Budget, Frozen

RESULTS = Path("mimbench-results")
ALL = "all"  # protocols
BUDGETS = ("epochs", "images", "flops", "hours")


class Arm(Frozen):
    """What one row of an experiment stands for."""

    row: str  # its variant, as tables name it
    value: str = ""  # on the axis, where that is no setting's: "HOG"
    group: str = ""  # rows of one group differ in what is asked about, and in little else


class About(Frozen):
    """What an experiment asks and how its answer is read; the page shows it beside the numbers."""

    title: str
    question: str  # in one sentence
    reading: str = ""  # what would speak for which answer, and what is held equal; plain words
    found: tuple[str, ...] = ()  # what published work found, each with its source
    confounds: tuple[str, ...] = ()  # what else differs between the rows
    axis: str = ""  # the setting along which the rows are plotted, such as mask_ratio
    axis_label: str = ""  # of the plot: "share of patches masked"
    arms: tuple[
        Arm, ...
    ] = ()  # rows that are plotted, and floors of a group; by default all with the setting
    sources: tuple[str, ...] = ()  # arXiv numbers of who asked it


class Request(Frozen):
    """One benchmark run as asked for. Everything has a default except ``methods``."""

    model_config = ConfigDict(allow_inf_nan=False)

    methods: tuple[str, ...] = Field(
        description="Methods, with settings in brackets for variants: 'mae,mae[mask_ratio=0.5],beit'."
    )
    protocol: tuple[str, ...] = Field(
        ("linprobe",),
        description="Evaluation protocols: 'linprobe,knn'; 'linprobe:mae' for an official recipe; 'all' for "
        "every one that suits the data; 'none' to pre-train only.",
    )
    data: tuple[str, ...] = Field(
        ("digits",),
        description="digits, imagefolder:PATH, parquet:PATH, cifar10:PATH, imagenet:PATH, hf:NAME, "
        "ade20k:PATH or coco:PATH. Of several, the first is pre-trained on, and each is evaluated on by the "
        "protocols of its kind.",
    )
    backbone: str | None = Field(
        None, description="Encoder architecture, such as vit_tiny_patch16; the dataset's by default."
    )
    image_size: int | None = Field(
        None, gt=0, description="Side of the square images in pixels; the dataset's by default."
    )
    epochs: float | None = Field(
        None, gt=0, description="Pre-training budget in epochs; the dataset's (100, digits 60) by default."
    )
    images: float | None = Field(None, gt=0, description="Pre-training budget in images seen.")
    flops: float | None = Field(None, gt=0, description="Pre-training budget in floating-point operations.")
    hours: float | None = Field(None, gt=0, description="Pre-training budget in hours.")
    recipe: Literal["shared", "paper"] = Field(
        "shared", description="One optimisation recipe for all methods, or each one's published one."
    )
    batch_size: int = Field(
        128, gt=0, description="Effective batch of pre-training, over accumulation and processes."
    )
    micro_batch: int | None = Field(
        None, gt=0, description="Images that go through the model at once; the whole batch by default."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="Of pre-training; auto is bf16 where the device computes it natively."
    )
    seeds: tuple[int, ...] = Field((0,), description="Each seed pre-trains and evaluates anew: '0,1,2'.")
    set: dict[str, Any] = Field(
        {}, description="Settings for all variants of a method or for a protocol: mae.mask_ratio=0.9."
    )
    tokenizer: str | None = Field(
        None,
        description="file:PATH, https://… or method:NAME, for methods with one (default: trained here).",
    )
    teacher: str | None = Field(
        None,
        description=(
            "mae@vit_base, timm:NAME, hf:REPO, file:PATH or method:NAME, for methods with one (default: "
            "trained here)."
        ),
    )
    baselines: bool = Field(
        True, description="Add floor and ceiling rows: random, pixels and (with labels) supervised."
    )
    skip_broken: bool = Field(False, description="Leave out images that cannot be read, and record them.")
    workers: int | None = Field(None, ge=0, description="Data-loading processes; chosen by default.")
    out: Path = Field(RESULTS, description="Results folder: records, weights, tables.")
    dry_run: bool = Field(False, description="List the jobs and an estimate of their cost, then stop.")
    about: About | None = Field(None, description="What the experiment asks: in experiment files alone.")

    @field_validator("methods", "protocol", "data", "seeds", mode="before")
    @classmethod
    def _items(cls, value: Any) -> Any:
        if isinstance(value, str):
            return settings.split(value)
        if isinstance(value, int):
            return (value,)
        if isinstance(value, Sequence):  # each item may itself be a list in text
            return [
                part for item in value for part in (settings.split(item) if isinstance(item, str) else [item])
            ]
        return value

    @field_validator("protocol")
    @classmethod
    def _no_protocol(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return () if value == ("none",) else value

    @field_validator("set", mode="before")
    @classmethod
    def _assignments(cls, value: Any) -> Any:
        """``["mae.mask_ratio=0.9"]``, ``{"mae.mask_ratio": 0.9}`` or ``{"mae": {"mask_ratio": 0.9}}``."""
        if isinstance(value, str):
            value = [value]
        pairs: list[tuple[str, Any]] = []
        if isinstance(value, Mapping):
            for owner, inner in value.items():
                nested = isinstance(inner, Mapping) and "." not in str(owner)
                pairs += [(f"{owner}.{k}", v) for k, v in inner.items()] if nested else [(str(owner), inner)]
        elif isinstance(value, Sequence):
            pairs = [settings.parse_assignment(text) for text in value]
        else:
            return value
        for name, _ in pairs:
            owner, dot, setting = name.partition(".")
            if not (owner and dot and setting):
                raise UserError(f"--set {name}=… does not say whose setting it is; write mae.{name}=…")
        return dict(pairs)

    @model_validator(mode="after")
    def _complete(self) -> Request:
        for name in ("methods", "data", "seeds"):
            if not getattr(self, name):
                raise UserError(f"{name} is empty; name at least one")
        if min(self.seeds) < 0:
            raise UserError(f"seeds {settings.show(self.seeds)}: must not be negative")
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)} are each a budget of pre-training; give one of them")
        if self.micro_batch and self.micro_batch > self.batch_size:
            raise UserError(
                f"micro_batch {self.micro_batch} is larger than batch_size {self.batch_size}; "
                "it is the part of a batch that goes through the model at once"
            )
        return self

    @property
    def named_protocols(self) -> tuple[str, ...]:
        """The protocols that were asked for by name, whose columns come first."""
        return tuple(name for name in self.protocol if name != ALL)

    @property
    def budget(self) -> Budget | None:
        """The budget that was asked for; None leaves it to the dataset."""
        for unit in BUDGETS:
            if (amount := getattr(self, unit)) is not None:
                return Budget(unit=unit, amount=amount)
        return None


def make_request(given: Mapping[str, Any]) -> Request:
    """A Request out of named values; raises UserError in one sentence for a wrong name or value."""
    for name in given:
        if name not in Request.model_fields:
            raise unknown("option of a run", str(name), Request.model_fields)
    if given.get("methods") is None:
        raise UserError(
            "methods are missing; name some, as in --methods mae,beit (mimbench methods lists all)"
        )
    try:
        return Request.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        raise UserError(f"{name}={settings.show(given[name])}: {settings.reason(first['msg'])}") from error


def read_file(path: Path) -> dict[str, Any]:
    """The options that a YAML experiment file gives; raises UserError where it is missing or no mapping."""
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        place = getattr(error, "problem_mark", None)
        where = f" in line {place.line + 1}" if place else ""
        problem = getattr(error, "problem", None) or "not text"
        raise UserError(f"{path} is not valid YAML{where}: {problem}; correct it") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no options; write lines such as 'methods: mae,beit'")
    return {str(name): value for name, value in content.items()}


def merge(file: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Options given on the command line over those of a file.

    A budget replaces the file's budget; methods and protocols that are replaced take their settings along.
    """
    kept = dict(file)
    if any(name in options for name in BUDGETS):
        kept = {name: value for name, value in kept.items() if name not in BUDGETS}
    if "set" in kept:
        asked = make_request({"methods": "any", **kept})
        now = make_request({"methods": "any", **kept, **options, "set": {}})
        gone = _keys(asked.methods) - _keys(now.methods)
        if ALL not in now.protocol:
            gone |= _keys(asked.protocol) - _keys(now.protocol)
        kept["set"] = {k: v for k, v in asked.set.items() if k.partition(".")[0] not in gone}
        if "set" in options:
            kept["set"] |= make_request({"methods": "any", "set": options["set"]}).set
        return {**kept, **options, "set": kept["set"]}
    return {**kept, **options}


def _keys(names: Iterable[str]) -> set[str]:
    """Of methods ("mae[mask_ratio=0.9]") or protocols ("linprobe:mae"), whose settings may be given."""
    return {re.split(r"[\[:]", name, maxsplit=1)[0] for name in names}
