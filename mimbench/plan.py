"""From a request to the jobs it takes: what is trained, what is evaluated, what needs what.

A job's id is a hash of its content, so plans of different requests share the jobs they have in common,
and what is left to do is a set difference.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimbench import registry, settings
from mimbench.download import fetch
from mimbench.errors import UserError, unknown
from mimbench.recipes import recipe_for
from mimbench.spec import Budget, Job, Setting

if TYPE_CHECKING:
    from mimbench.data import DataDefaults, Dataset
    from mimbench.method import Method
    from mimbench.protocol import Protocol
    from mimbench.request import Request


@dataclass(frozen=True)
class Plan:
    """Jobs in an order in which each comes after those it needs."""

    setting: Setting
    jobs: tuple[Job, ...]
    tokenizer_files: Mapping[str, Path] = field(default_factory=dict)  # by sha256; decides nothing

    def __iter__(self) -> Iterator[Job]:
        return iter(self.jobs)

    def __len__(self) -> int:
        return len(self.jobs)

    def dependants(self, job: Job) -> list[Job]:
        return [other for other in self.jobs if job.id in other.needs]


@dataclass(frozen=True)
class TokenizerFile:
    """Weights given by the user."""

    path: Path
    sha256: str


@dataclass(frozen=True)
class Variant:
    """One method with its settings: a row of the table."""

    cls: type[Method]
    settings: dict[str, Any]
    label: str
    tokenizer: Variant | TokenizerFile | None = None

    @property
    def key(self) -> str:
        return self.cls.card.key

    def content(self) -> dict[str, Any]:
        """What of a job's content the variant decides."""
        card = self.cls.card
        content: dict[str, Any] = {
            "method": card.key,
            "variant": self.label,
            "settings": self.settings,
            "method_version": card.version,
            "role": card.role,
            "external": card.external,
        }
        if isinstance(self.tokenizer, TokenizerFile):
            content["tokenizer"] = {"sha256": self.tokenizer.sha256}
        elif self.tokenizer is not None:
            content["tokenizer"] = self.tokenizer.content()
        return content


@dataclass
class _Assignments:
    """What ``--set`` gave, by owner; remembers which owners were met."""

    given: Mapping[str, Any]
    met: set[str] = field(default_factory=set)

    def of(self, owner: str) -> dict[str, Any]:
        self.met.add(owner)
        found = {}
        for name, value in self.given.items():
            whose, _, setting = name.partition(".")
            if whose == owner:
                found[setting] = value
        return found

    def check_all_met(self) -> None:
        for name in self.given:
            owner = name.partition(".")[0]
            if owner not in self.met:
                raise unknown(
                    "method or protocol of this run", owner, self.met, f"from --set {name}; is it in the run?"
                )


def make_plan(request: Request, data: Dataset, precision: str) -> Plan:
    """All jobs that ``request`` takes on ``data``.

    precision: what the request's precision comes down to on this device.
    Raises UserError for whatever of the request cannot work, before any work starts.
    """
    setting = Setting(
        data=data.name,
        fingerprint=data.fingerprint,
        image_size=request.image_size or data.defaults.image_size,
        backbone=request.backbone or data.defaults.backbone,
        budget=request.budget or Budget(unit="epochs", amount=data.defaults.epochs),
        recipe=request.recipe,
        batch_size=request.batch_size,
        precision=precision,
    )
    assigned = _Assignments(request.set)
    variants = choose_variants(request, data.classes is not None, assigned)
    protocols = choose_protocols(request, data, assigned)
    assigned.check_all_met()

    jobs: dict[str, Job] = {}
    for seed in dict.fromkeys(request.seeds):
        for variant in variants:
            pretrain = _pretrain_jobs(variant, setting, seed, data.defaults)
            jobs |= {job.id: job for job in pretrain}
            for cls, fields in protocols:
                job = _evaluate_job(variant, setting, seed, cls, fields, pretrain[-1])
                jobs[job.id] = job
    files = {v.tokenizer.sha256: v.tokenizer.path for v in variants if isinstance(v.tokenizer, TokenizerFile)}
    return Plan(setting, tuple(jobs.values()), files)


def choose_variants(request: Request, labelled: bool, assigned: _Assignments) -> list[Variant]:
    """The variants a request names, floor rows before them and ceiling rows after them."""
    wanted = settings.parse_methods(",".join(request.methods))
    if request.baselines:
        listed = {item.key for item in wanted}
        for key, cls in registry.methods().items():
            role = cls.card.role
            if key in listed or (cls.card.external == "labels" and not labelled):
                continue
            if role in ("floor", "ceiling"):
                wanted.insert(0 if role == "floor" else len(wanted), settings.Wanted(key, {}))
    variants: dict[str, Variant] = {}
    takes_tokenizer = False
    for item in wanted:
        cls = registry.find_method(item.key)
        if cls.card.role == "tokenizer":
            raise UserError(f"{item.key} is a tokenizer and no row; give it as --tokenizer method:{item.key}")
        if cls.card.external == "labels" and not labelled:
            raise UserError(f"{item.key} needs labels, and the dataset has none; leave it out")
        takes_tokenizer |= _takes_tokenizer(cls)
        variant = _variant(item, cls, request.tokenizer, assigned)
        variants[variant.label] = variant
    if request.tokenizer and not takes_tokenizer:
        raise UserError(
            f"--tokenizer {request.tokenizer}: no method of this run has a tokenizer; leave it out"
        )
    return list(variants.values())


def _takes_tokenizer(cls: type[Method]) -> bool:
    return "tokenizer" in inspect.signature(cls.__init__).parameters


def _variant(
    item: settings.Wanted, cls: type[Method], tokenizer: str | None, assigned: _Assignments
) -> Variant:
    own = {name: value for name, value in item.given.items() if "." not in name}
    inner = {name: value for name, value in item.given.items() if "." in name}
    if not _takes_tokenizer(cls):
        for name in (*inner, *(["tokenizer"] if "tokenizer" in own else [])):
            raise UserError(f"{item.key} has no tokenizer; leave out {name!r}")
        parsed = settings.parse_settings(item.key, cls, {**assigned.of(item.key), **own})
        return Variant(cls, parsed, settings.label(item.key, cls, parsed))

    source = str(own.pop("tokenizer", None) or tokenizer or f"method:{cls.needs.get('tokenizer')}")
    parsed = settings.parse_settings(item.key, cls, {**assigned.of(item.key), **own})
    kind, _, name = source.partition(":")
    if source == "method:None":
        raise UserError(f"{item.key} needs a tokenizer; give one as --tokenizer file:PATH or method:NAME")
    if kind in ("file", "http", "https") and name:
        file = _tokenizer_file(Path(name).expanduser() if kind == "file" else fetch(source))
        found: Variant | TokenizerFile = file
        more = {"tokenizer": f"sha256:{file.sha256[:8]}"}
        for setting in inner:
            raise UserError(f"{item.key}[{setting}]: the tokenizer comes from {name} and takes no settings")
    elif kind == "method" and name:
        found = _trained_tokenizer(name, inner, assigned)
        changed = settings.parse_methods(found.label)[0].given
        more = {f"{name}.{setting}": value for setting, value in changed.items()}
        if name != cls.needs.get("tokenizer"):
            more["tokenizer"] = source
    else:
        raise UserError(
            f"--tokenizer {source}: write file:PATH or https://… for weights, method:NAME for one to train"
        )
    return Variant(cls, parsed, settings.label(item.key, cls, parsed, more), found)


def _tokenizer_file(path: Path) -> TokenizerFile:
    try:
        with open(path, "rb") as file:
            digest = hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise UserError(
            f"cannot read the tokenizer {path}: {error.strerror or error}; check the path"
        ) from error
    return TokenizerFile(path, digest.hexdigest())


def _trained_tokenizer(key: str, inner: Mapping[str, Any], assigned: _Assignments) -> Variant:
    tokenizers = {k: cls for k, cls in registry.methods().items() if cls.card.role == "tokenizer"}
    if key not in tokenizers:
        raise unknown("tokenizer", key, tokenizers)
    given = assigned.of(key)
    for name, value in inner.items():
        owner, _, setting = name.partition(".")
        if owner != key:
            raise UserError(f"the setting {name!r} belongs to no part of this method; its tokenizer is {key}")
        given[setting] = value
    parsed = settings.parse_settings(key, tokenizers[key], given)
    return Variant(tokenizers[key], parsed, settings.label(key, tokenizers[key], parsed))


def choose_protocols(
    request: Request, data: Dataset, assigned: _Assignments
) -> list[tuple[type[Protocol], dict[str, Any]]]:
    """Protocol classes with all their fields, checked against the data."""
    chosen = []
    for key in dict.fromkeys(request.protocol):
        cls = registry.find_protocol(key)
        fields = settings.parse_settings(key, cls, assigned.of(key))
        cls(**settings.arguments(cls, fields)).check(data)
        chosen.append((cls, fields))
    return chosen


def _pretrain_jobs(variant: Variant, setting: Setting, seed: int, defaults: DataDefaults) -> list[Job]:
    """The job that makes the variant's encoder, last; before it what it needs."""
    before: list[Job] = []
    kind = "tokenizer" if variant.cls.card.role == "tokenizer" else "pretrain"
    if isinstance(variant.tokenizer, Variant):
        before = _pretrain_jobs(variant.tokenizer, setting, seed, defaults)
    recipe = recipe_for(variant.cls.card, setting.recipe)
    if recipe is not None:
        augmentation = defaults.suit(recipe.augmentation)
        recipe = recipe.model_copy(update={"augmentation": augmentation})
    content = variant.content() | {
        "setting": setting.content(),
        "seed": seed,
        "recipe": recipe and recipe.content(),
    }
    name = f"{variant.label} · {'tokenizer' if kind == 'tokenizer' else 'pre-training'} · seed {seed}"
    return [*before, Job(kind=kind, name=name, content=content, needs=tuple(job.id for job in before[-1:]))]


def _evaluate_job(
    variant: Variant,
    setting: Setting,
    seed: int,
    protocol: type[Protocol],
    fields: dict[str, Any],
    pretrain: Job,
) -> Job:
    content = variant.content() | {
        "protocol": protocol.key,
        "protocol_version": protocol.version,
        "fields": fields,
        "setting": setting.content(),
        "seed": seed,
    }
    name = f"{variant.label} · {protocol.key} · seed {seed}"
    return Job(kind="evaluate", name=name, content=content, needs=(pretrain.id,))
