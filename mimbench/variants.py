"""Which methods a request names, with their settings and with what is trained or given for them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from mimbench import registry, settings
from mimbench.download import fetch
from mimbench.errors import UserError, unknown
from mimbench.progress import Progress, silent
from mimbench.request import BUDGETS, Request
from mimbench.spec import External
from mimbench.weights.given import Given, is_given, resolve

if TYPE_CHECKING:
    from mimbench.method import Method


@dataclass(frozen=True)
class WeightsFile:
    """Weights that are given. name: how tables call them. external: what they were told, as far as known."""

    path: Path
    sha256: str
    name: str
    external: External = "none"


@dataclass(frozen=True)
class Variant:
    """One method with its settings: a row of the table.

    provided: what each keyword of the class's ``needs`` gets, where it gets something. backbone: that of
    the released weights beside which it stands as a floor; None: the request's.
    """

    cls: type[Method]
    settings: dict[str, Any]
    label: str
    provided: Mapping[str, Variant | WeightsFile] = field(default_factory=dict)
    backbone: str | None = None

    @property
    def key(self) -> str:
        return self.cls.card.key

    @property
    def external(self) -> External:
        """The most that it or anything it learns from was told beside the images."""
        told: list[External] = [self.cls.card.external]
        told += ["teacher"] * any(name.endswith("teacher") for name in self.provided)
        told += [source.external for source in self.provided.values()]
        return max(told, key=get_args(External).index)

    @property
    def sources(self) -> str:
        """What it learns from, for people: "tokenizer vqkd (teacher ibot)"; "" where from images alone."""
        named = []
        for name, source in sorted(self.provided.items()):
            if isinstance(source, WeightsFile):
                named.append(f"{name} {source.name}")
            else:
                more = f" ({source.sources})" if source.sources else ""
                named.append(f"{name} {source.label}{more}")
        return ", ".join(named)

    @property
    def files(self) -> dict[str, Path]:
        """Given weights by their sha256, of all it learns from."""
        found: dict[str, Path] = {}
        for source in self.provided.values():
            found |= {source.sha256: source.path} if isinstance(source, WeightsFile) else source.files
        return found

    def content(self) -> dict[str, Any]:
        """What of a job's content the variant decides."""
        card = self.cls.card
        content: dict[str, Any] = {
            "method": card.key,
            "variant": self.label,
            "settings": self.settings,
            "method_version": card.version,
            "role": card.role,
            "external": self.external,
            "parity": card.parity,
        }
        if self.provided:
            content["sources"] = self.sources
            content["provided"] = {
                name: {"sha256": source.sha256} if isinstance(source, WeightsFile) else source.content()
                for name, source in sorted(self.provided.items())
            }
        return content


@dataclass(frozen=True)
class Released:
    """Weights that somebody else trained, or the same encoder with random ones: a row of the table."""

    given: Given
    untrained: bool = False

    @property
    def label(self) -> str:
        return f"random[like={self.given.label}]" if self.untrained else self.given.label

    @property
    def backbone(self) -> str:
        return str(self.given.config["name"])

    @property
    def architecture(self) -> dict[str, Any]:
        """What an encoder of the same kind is built from, for images of whatever size."""
        return {name: value for name, value in self.given.config.items() if name != "image_size"}

    @property
    def files(self) -> dict[str, Path]:
        return {self.given.key: self.given.path}

    def content(self) -> dict[str, Any]:
        """What of a job's content it decides; what is merely told of a release may be corrected later."""
        return {
            "method": "random" if self.untrained else self.given.method,
            "variant": self.label,
            "settings": {},
            "method_version": self.given.release["origin_version"],
            "role": "floor" if self.untrained else "method",
            "parity": "baseline" if self.untrained else "released",
            "released": {"key": self.given.key, "untrained": self.untrained, **self.given.identity},
        }


@dataclass
class Assignments:
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


def choose_variants(
    request: Request, labelled: bool, assigned: Assignments, report: Callable[[Progress], None] = silent
) -> list[Variant] | list[Released | Variant]:
    """The variants a request names, floor rows before them and ceiling rows after them.

    report: hears how far weights are that have to be fetched.
    """
    wanted = settings.parse_methods(",".join(request.methods))
    if asks_for_released(request):
        return _released(request, wanted, assigned, report)
    if request.baselines:
        listed = {item.key for item in wanted if not item.given}  # a variant does not stand in for it
        for key, cls in registry.methods().items():
            role = cls.card.role
            if key in listed or (cls.card.external == "labels" and not labelled):
                continue
            if role in ("floor", "ceiling"):
                wanted.insert(0 if role == "floor" else len(wanted), settings.Wanted(key, {}))
    given = {
        name: source for name in ("tokenizer", "teacher") if (source := getattr(request, name)) is not None
    }
    builder = _Builder(assigned, labelled, report)
    variants = [builder.row(item, given) for item in wanted]
    for name, source in given.items():
        if name not in builder.used:
            raise UserError(f"--{name} {source}: no method of this run has a {name}; leave it out")
    return list({variant.label: variant for variant in variants}.values())


def asks_for_released(request: Request) -> bool:
    """Whether a request is of weights that somebody else trained.

    Raises UserError where it also names methods to train: the two have no setting in common.
    """
    wanted = settings.parse_methods(",".join(request.methods))
    named = {item.key.partition("=")[0] for item in wanted if is_given(item.key)}
    given = [item.key for item in wanted if is_given(item.key) or _stands_beside(item, named)]
    trained = [item.key for item in wanted if not is_given(item.key) and _role(item) != "floor"]
    if given and trained:
        raise UserError(
            f"{given[0]} is trained already and {trained[0]} would be trained here, so that they have no "
            "setting in common and stand in no table together; run them apart (the same --out puts both on "
            "one page)"
        )
    return bool(given)


def _stands_beside(item: settings.Wanted, named: Collection[str]) -> bool:
    """Whether it is a floor of weights (of which some are ``named``) or of their backbone, no method's."""
    like = str(item.given.get("like", ""))
    return bool(like) and (is_given(like) or like in named or item.key == "pixels")


def _role(item: settings.Wanted) -> str:
    return registry.find_method(item.key).card.role


def _released(
    request: Request,
    wanted: Sequence[settings.Wanted],
    assigned: Assignments,
    report: Callable[[Progress], None],
) -> list[Released | Variant]:
    """Rows of released weights; before them raw pixels, and each of their architectures untrained."""
    for name in ("backbone", *BUDGETS, "recipe", "batch_size", "tokenizer", "teacher"):
        if getattr(request, name) != Request.model_fields[name].default:
            raise UserError(
                f"--{name.replace('_', '-')} says how to pre-train, and these weights are trained already; "
                "leave it out"
            )
    rows: list[Released] = []
    for item in wanted:
        if is_given(item.key):
            if item.given:
                raise UserError(
                    f"{item.key} is trained already and takes no settings; leave the brackets out"
                )
            rows.append(Released(resolve(item.key, report)))
    named = {row.label: row.given for row in rows}
    for item in wanted:
        if item.key == "random":
            if item.given.keys() != {"like"}:
                raise UserError(
                    "random beside released weights: say like which, and nothing else, as in "
                    "random[like=mae@vit_base]"
                )
            like = str(item.given["like"])
            rows.append(Released(named.get(like) or resolve(like, report), untrained=True))
    by_label: dict[str, Released] = {}
    for row in rows:
        if by_label.setdefault(row.label, row).given.key != row.given.key:
            raise UserError(
                f"two files are called {row.label}; give one a name of its own, as in mine=file:PATH"
            )
    if request.baselines:
        for row in list(by_label.values()):
            if not any(r.untrained and r.architecture == row.architecture for r in by_label.values()):
                floor = Released(row.given, untrained=True)
                by_label[floor.label] = floor
    floors = [row for row in by_label.values() if row.untrained]
    methods = [row for row in by_label.values() if not row.untrained]
    backbones = list(dict.fromkeys(row.backbone for row in by_label.values()))
    return [*_pixels(request, wanted, assigned, backbones), *floors, *methods]


def _pixels(
    request: Request, wanted: Sequence[settings.Wanted], assigned: Assignments, backbones: Sequence[str]
) -> list[Variant]:
    """Raw pixels beside each backbone, on whose grid they are; beside one that is named alone."""
    named = [item for item in wanted if not is_given(item.key) and item.key != "random"]
    if request.baselines and not named:
        named = [settings.Wanted("pixels", {})]
    builder, found = _Builder(assigned, labelled=True), []
    for item in named:
        own = dict(item.given)
        like = own.pop("like", None)
        variant = builder.row(settings.Wanted(item.key, own), {})
        if variant.key != "pixels":
            raise UserError(f"{item.key} is no floor of released weights; leave it out")
        found += [replace(variant, backbone=name) for name in ([str(like)] if like else backbones)]
    return found


@dataclass
class _Builder:
    """Makes variants out of what was typed; remembers which sources given for all were used."""

    assigned: Assignments
    labelled: bool
    report: Callable[[Progress], None] = silent
    used: set[str] = field(default_factory=set)

    @cached_property
    def files(self) -> dict[str, WeightsFile]:
        """Files that were read, by source: many rows may name the same one."""
        return {}

    def row(self, item: settings.Wanted, given: Mapping[str, str]) -> Variant:
        cls = registry.find_method(item.key)
        if cls.card.role == "tokenizer":
            raise UserError(f"{item.key} is a tokenizer and no row; give it as --tokenizer method:{item.key}")
        inner = {name: value for name, value in item.given.items() if "." in name}
        variant, met = self._variant(item, given, ())
        for name in inner:
            if name.partition(".")[0] not in met:
                parts = ", ".join(sorted(met - {item.key})) or "nothing else"
                raise UserError(
                    f"{item.key} takes no setting {name!r}: it is trained from {parts}; leave it out"
                )
        return variant

    def _variant(
        self, item: settings.Wanted, given: Mapping[str, str], chain: Sequence[str]
    ) -> tuple[Variant, set[str]]:
        """The variant, and the keys of all methods whose settings its brackets may hold."""
        key, cls = item.key, registry.find_method(item.key)
        if chain.count(key) > 1:  # once is legitimate: a method may learn from its own default
            way = " <- ".join((*chain, key))
            raise UserError(f"{key} would have to be trained before itself ({way}); name another source")
        if cls.card.external == "labels" and not self.labelled:
            raise UserError(f"{key} needs labels, one for each image, and the dataset has none; leave it out")
        inner = {name: value for name, value in item.given.items() if "." in name}
        own = {name: value for name, value in item.given.items() if "." not in name}
        named = {name: str(own.pop(name)) for name in list(own) if settings.is_provided(name)}
        for name in named:
            if name not in cls.needs:
                raise UserError(f"{key} has no {name}; leave it out")
        parsed = settings.parse_settings(key, cls, {**self.assigned.of(key), **own})

        provided: dict[str, Variant | WeightsFile] = {}
        more: dict[str, Any] = {}
        met = {key}
        for name, default in sorted(cls.needs.items()):
            if name in given:
                self.used.add(name)
            source = named.get(name) or given.get(name) or (f"method:{default}" if default else None)
            if source is None:
                continue
            if source.startswith("method:"):
                found, owners = self._trained(name, source, inner, given, (*chain, key))
                provided[name] = found
                changed = settings.parse_methods(found.label)[0].given
                more |= {k if "." in k else f"{found.key}.{k}": v for k, v in changed.items()}
                met |= owners
                if source != f"method:{default}":
                    more[name] = source
            else:
                provided[name] = file = self._file(name, source)
                more[name] = file.name
        return Variant(cls, parsed, settings.label(key, cls, parsed, more), provided), met

    def _trained(
        self,
        name: str,
        source: str,
        inner: Mapping[str, Any],
        given: Mapping[str, str],
        chain: Sequence[str],
    ) -> tuple[Variant, set[str]]:
        """What is trained first for the keyword ``name``."""
        key = source.partition(":")[2]
        kind = "tokenizer" if name.endswith("tokenizer") else "teacher"
        fitting = {
            k: cls
            for k, cls in registry.methods().items()
            if (cls.card.role == "tokenizer") == (kind == "tokenizer")
        }
        if key not in fitting:
            raise unknown(kind, key, fitting)
        own = {
            inside: value
            for full, value in inner.items()
            for owner, _, inside in [full.partition(".")]
            if owner == key
        }
        if kind == "teacher":  # what is given for all is for the rows and their tokenizers, not a teacher's
            given = {k: v for k, v in given.items() if k != "teacher"}
        rest = {full: value for full, value in inner.items() if full.partition(".")[0] != key}
        return self._variant(settings.Wanted(key, {**own, **rest}), given, chain)

    def _file(self, name: str, source: str) -> WeightsFile:
        kind, _, rest = source.partition(":")
        teacher = name.endswith("teacher")
        if source not in self.files:
            if kind == "file" and rest:
                self.files[source] = _read(name, Path(rest).expanduser(), None)
            elif kind in ("http", "https") and rest and not teacher:
                self.files[source] = _read(name, fetch(source, self.report), None)
            elif teacher and is_given(source):
                given = resolve(source, self.report)
                told = given.release.get("external", "none")
                self.files[source] = replace(_read(name, given.path, source), external=told)
            else:
                forms = "released weights such as mae@vit_base or timm:NAME" if teacher else "https://…"
                raise UserError(
                    f"--{name} {source}: write file:PATH or {forms}, method:NAME for one to train"
                )
        return self.files[source]


def _read(name: str, path: Path, called: str | None) -> WeightsFile:
    if path.is_dir():
        path = path / "encoder.safetensors"
    try:
        with open(path, "rb") as file:
            digest = hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise UserError(
            f"cannot read the {name} {path}: {error.strerror or error}; check the path"
        ) from error
    return WeightsFile(path, digest.hexdigest(), called or f"sha256:{digest.hexdigest()[:8]}")
