"""A classification protocol that another one evaluates on other test images."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from mimbench import registry, settings
from mimbench.errors import UserError, unknown
from mimbench.outcomes import Hits, Values
from mimbench.protocol import Evaluation, EvaluationFailed, Protocol
from mimbench.spec import content_hash

if TYPE_CHECKING:
    from mimbench.data import Dataset


@dataclass(frozen=True)
class Wrapped:
    """The protocol that a field such as ``classifier=linprobe:mae`` names. notes: what differs from it."""

    label: str
    protocol: Protocol
    notes: tuple[str, ...] = ()

    def check(self, data: Dataset) -> None:
        """Raise UserError where it cannot work on ``data`` or what it requires is not installed."""
        if self.protocol.requires is not None:
            modules, extra = self.protocol.requires
            if missing := [module for module in modules if find_spec(module) is None]:
                raise UserError(
                    f"{self.label} needs {', '.join(missing)}, not installed here; "
                    f"pip install 'mimbench[{extra}]'"
                )
        self.protocol.check(data)

    @property
    def identity(self) -> str:
        """Its name, version and settings, for the identity of a job and for people."""
        settings = content_hash(asdict(self.protocol), length=8)
        return f"{self.label} version {self.protocol.version} ({settings})"

    def facts(self, found: Evaluation) -> dict[str, Any]:
        """What it said beside the outcomes, for the record."""
        more = {name: value for name, value in found.facts.items() if name != "flags"}
        own: dict[str, Any] = {"classifier": {"protocol": self.identity, **more}}
        if self.notes:
            own["classifier"]["notes"] = list(self.notes)
        if "flags" in found.facts:
            own["flags"] = found.facts["flags"]
        return own


def wrapped(name: str, owner: str, takes_answers: bool = False) -> Wrapped:
    """The protocol called ``name``, choosing on validation: KEY, KEY:RECIPE or either with [SETTING=VALUE].

    owner: whose field it is, for messages. takes_answers: only one that does will do.

    Raises UserError for an unknown name or setting, and for a protocol that does not say of each image
    whether it came out right.
    """
    wanted = settings.parse_methods(name)
    if len(wanted) != 1:
        raise UserError(f"{owner}.classifier={name} should name one protocol, as in linprobe or linprobe:mae")
    key, colon, preset = wanted[0].key.partition(":")
    fitting = {key: cls for key, cls in registry.protocols().items() if _classifies(cls, takes_answers)}
    cls = registry.find_protocol(key)
    if key not in fitting:
        reason = (
            "cannot choose among some of the classes only"
            if _classifies(cls, False)
            else "does not classify images"
        )
        raise UserError(f"{owner}.classifier={name}: {key} {reason}; use one of {', '.join(sorted(fitting))}")
    if colon and preset not in cls.presets:
        if not cls.presets:
            raise UserError(
                f"{owner}.classifier={name}: {key} has no official recipes to choose from; write {key}"
            )
        raise unknown(f"official recipe of {key}", preset, cls.presets)
    recipe = dict(cls.presets[preset].fields) if colon else {}
    fields = settings.parse_settings(key, cls, {**recipe, **wanted[0].given})
    if fields.get("choose_on", "validation") == "validation":
        return Wrapped(name, cls(**settings.arguments(cls, fields)))
    # Its test images would be those that the figure is about.
    fields["choose_on"] = "validation"
    protocol = cls(**settings.arguments(cls, fields))
    return Wrapped(name, protocol, ("chosen on validation, unlike the published recipe",))


def _classifies(cls: type[Protocol], takes_answers: bool) -> bool:
    """Whether its outcomes are about single images of the data's own classes."""
    return (
        cls.task == "classification"
        and cls.metric == "top1"
        and cls.ranked
        and not cls.own_test
        and (cls.takes_answers or not takes_answers)
    )


def correct(found: Evaluation, label: str) -> np.ndarray:
    """How right each image came out, float64 [N] in [0, 1]: one or nothing, or the share of several draws."""
    if isinstance(found.outcomes, Hits):
        return found.outcomes.hits.astype(np.float64)
    if isinstance(found.outcomes, Values):
        return found.outcomes.values.astype(np.float64)
    raise EvaluationFailed(f"{label} gave no outcome that is a share of right answers for each image")
