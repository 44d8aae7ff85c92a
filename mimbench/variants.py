"""Rows of a table before any work: a method with its settings, or weights that somebody else trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from mimbench.errors import unknown
from mimbench.spec import External
from mimbench.weights.given import Given

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
