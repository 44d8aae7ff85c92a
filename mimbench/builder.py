"""Makes a row of a method to train out of what was typed: its settings, and what it learns from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mimbench import registry, settings
from mimbench.download import fetch
from mimbench.errors import UserError, unknown
from mimbench.files import sha256
from mimbench.progress import Progress, silent
from mimbench.variants import Assignments, Variant, WeightsFile
from mimbench.weights.given import is_given, resolve


@dataclass
class Builder:
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
        digest = sha256(path)
    except OSError as error:
        raise UserError(
            f"cannot read the {name} {path}: {error.strerror or error}; check the path"
        ) from error
    return WeightsFile(path, digest, called or f"sha256:{digest[:8]}")
