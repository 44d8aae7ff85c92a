"""In what two records differ, ordered by how likely it explains that their numbers do. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from mimbench import settings
from mimbench.provenance import DISTRIBUTIONS
from mimbench.report.text import HOLE
from mimbench.spec import Frozen, Record

Kind = Literal[
    "question",
    "method",
    "setting",
    "data",
    "seed",
    "weights",
    "code",
    "library",
    "hardware",
    "choice",
    "cost",
]
# Likeliest first. What a difference of each kind means for a gap between two numbers.
MEANING: dict[Kind, str] = {
    "question": "another question was asked of the weights",
    "method": "another method, or other settings of it",
    "setting": "trained under other conditions",
    "data": "other images, or prepared otherwise",
    "seed": "another draw of the initialisation and of the data's order",
    "weights": "other weights were evaluated",
    "code": "mimbench itself was another",
    "library": "another version of what computes: rounding, defaults or kernels may differ",
    "hardware": "another machine: sums in another order round otherwise",
    "choice": "validation chose another candidate, which follows from the weights",
    "cost": "what it took; a consequence and no cause",
}
ORDER = list(MEANING)
QUESTION: frozenset[Kind] = frozenset({"question", "method", "setting", "data"})  # two numbers of two things
SURROUNDINGS: frozenset[Kind] = frozenset({"code", "library", "hardware"})
CONSEQUENCES: frozenset[Kind] = frozenset({"weights", "choice", "cost"})

_NUMERICAL = ("torch", "timm", "torchvision", "lightning-fabric", "numpy", "pillow", "scikit-learn")
_COSTS = ("wall_seconds", "images_per_second", "flops", "images", "tokens_seen", "peak_memory_bytes")
_OF_METHOD = ("variant", "settings.", "method_version", "role", "external", "parity", "sources", "provided.")
_LABELS = ("role", "external", "parity")  # what a card says of a method, part of a job's identity


class Difference(Frozen):
    """One fact in which two records differ. a, b: JSON data; None where one has nothing of the kind."""

    kind: Kind
    name: str  # "settings.mask_ratio", "versions.torch"
    a: Any
    b: Any

    @property
    def text(self) -> str:
        return f"{self.name}: {shown(self.a)} → {shown(self.b)}"


def shown(value: Any, most: int = 60) -> str:
    """A value for people; hashes and long texts shortened."""
    if value is None:
        return HOLE
    text = settings.show(value)
    if isinstance(value, str) and len(value) >= 40 and not set(value) - set("0123456789abcdef "):
        return " ".join(f"{part[:8]}…" for part in value.split(" "))
    return text if len(text) <= most else f"{text[: most - 1]}…"


def differences(a: Record, b: Record) -> list[Difference]:
    """All facts in which two records differ, the likeliest explanation of a gap first."""
    facts = [dict(_facts(record)) for record in (a, b)]
    if not (a.environment and b.environment):  # a failed record tells nothing of it
        facts = [{k: v for k, v in one.items() if k[0] not in SURROUNDINGS} for one in facts]
    if a.kind == b.kind != "evaluate":  # a pre-training's product is its result and no cause
        facts = [{k: v for k, v in one.items() if k[0] != "choice"} for one in facts]
    gone = _implied(facts)
    names = [name for name in dict.fromkeys([*facts[0], *facts[1]]) if not name[1].startswith(gone)]
    found = [
        Difference(kind=kind, name=name, a=facts[0].get((kind, name)), b=facts[1].get((kind, name)))
        for kind, name in names
        if facts[0].get((kind, name)) != facts[1].get((kind, name))
    ]
    return sorted(found, key=lambda difference: ORDER.index(difference.kind))  # stable: else as above


def _implied(facts: Sequence[Mapping[tuple[Kind, str], Any]]) -> tuple[str, ...]:
    """Starts of names that need no listing: that another protocol has other fields goes without saying."""
    found: tuple[str, ...] = ()
    for name in {**facts[0], **facts[1]}:
        if facts[0].get(name) != facts[1].get(name):
            start, _, last = name[1].rpartition(".")
            if name == ("question", "protocol"):
                found += ("fields.", "built_on", "preset", "protocol_version")
            elif name == ("method", "method"):
                found += ("settings.", "method_version", "the card's ")
            elif last == "method" and start.startswith("provided."):
                found += tuple(f"{start}.{part}" for part in _OF_METHOD)
    return found


def of_kinds(found: list[Difference], kinds: frozenset[Kind]) -> list[Difference]:
    """Those of some kinds."""
    return [difference for difference in found if difference.kind in kinds]


Fact = tuple[tuple[Kind, str], Any]


def _facts(record: Record) -> Iterator[Fact]:
    content = record.content
    setting, data = content.get("setting", {}), record.data
    yield ("question", "kind of job"), record.kind
    for name in ("protocol", "protocol_version", "preset"):
        yield ("question", name), content.get(name)
    for part in ("fields", "built_on"):
        yield from _flat("question", part, content.get(part, {}))
    if record.kind == "evaluate":
        yield ("question", "metric"), record.facts.get("metric")
        tested = content.get("data", setting).get("fingerprint")
        yield ("question", "test images"), data.get("fingerprints", {}).get("test", tested)
    yield ("method", "method"), content.get("method")
    yield ("method", "method_version"), content.get("method_version")
    for part in ("settings", "provided", "recipe", "released"):
        yield from _flat("method", part, content.get(part) or {})
    for name in ("backbone", "image_size", "recipe", "batch_size", "precision"):
        yield ("setting", name if name != "recipe" else "recipe policy"), setting.get(name)
    yield from _flat("setting", "budget", setting.get("budget") or {})
    yield ("data", "pre-training data"), setting.get("fingerprint")
    for name in ("fingerprint", "sizes", "split_rule", "store_side", "skipped"):
        yield ("data", name), data.get(name)
    yield ("seed", "seed"), content.get("seed")
    yield ("weights", "weights it was made from"), " ".join(sorted(record.needs.values())) or None
    yield from _surroundings(record)
    for name in _LABELS:
        yield ("code", f"the card's {name}"), content.get(name)
    candidates, chosen = record.selection.get("candidates"), record.selection.get("chosen")
    if isinstance(candidates, list) and isinstance(chosen, int) and 0 <= chosen < len(candidates):
        own = {k: v for k, v in candidates[chosen].items() if not k.startswith(("validation_", "test_"))}
        yield ("choice", "chosen candidate"), own
    for name in _COSTS:
        yield ("cost", name), record.cost.get(name)


def _surroundings(record: Record) -> Iterator[Fact]:
    environment = record.environment
    versions = environment.get("versions", {})
    yield ("code", "mimbench"), versions.get("mimbench")
    source = environment.get("source", {})
    yield ("code", "commit"), source.get("commit")
    yield ("code", "files changed since that commit"), source.get("changed")
    rest = [name for name in (*DISTRIBUTIONS, *versions) if name not in (*_NUMERICAL, "mimbench")]
    for name in dict.fromkeys((*_NUMERICAL, *rest)):
        yield ("library", name), versions.get(name)
    yield ("library", "python"), environment.get("python")
    yield ("hardware", "device it was trained on"), record.cost.get("device") or None
    yield ("hardware", "processes"), record.cost.get("processes")
    for name in ("gpus", "cuda", "tf32", "cpu", "torch_threads", "cpu_count", "platform"):
        yield ("hardware", name), environment.get(name)
    yield from _flat("hardware", "threads", environment.get("threads", {}))


def _flat(kind: Kind, name: str, value: Any) -> Iterator[Fact]:
    """Mappings within mappings as names with dots."""
    if isinstance(value, Mapping):
        for inner, more in value.items():
            yield from _flat(kind, f"{name}.{inner}", more)
    else:
        yield (kind, name), value
