"""Of a report what the records say of the work itself: jobs, rows, measures, preparation, recipes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from mimbench import registry
from mimbench.errors import UnknownNameError
from mimbench.report.text import plain
from mimbench.repro.dossier import JobLine, Measure, Row
from mimbench.repro.surroundings import seconds
from mimbench.spec import Record


def line(record: Record) -> JobLine:
    """What became of a job."""
    return JobLine(
        record=record.id,
        kind=record.kind,
        name=record.name,
        status=record.status,
        seed=record.content.get("seed"),
        seconds=seconds(record),
        finished=record.finished,
    )


def rows(found: Sequence[Record]) -> tuple[Row, ...]:
    """What was trained, in alphabetical order."""
    seeds: dict[tuple[str, str, str], set[int]] = defaultdict(set)
    cards = {
        r.content["method"]: {
            name: r.facts["card"].get(name) for name in ("paper", "arxiv", "code", "version")
        }
        for r in found
        if r.facts.get("release") and "card" in r.facts  # whose method's code is not needed
    }
    for record in found:
        content = record.content
        key = content["method"]
        variant = str(content.get("variant") or key)
        seeds[variant, key, str(content.get("role", "method"))].add(content["seed"])
    return tuple(
        Row(variant=variant, role=role, seeds=tuple(sorted(used)), **_card(key, cards.get(key, {})))
        for (variant, key, role), used in sorted(seeds.items())
    )


def _card(key: str, kept: dict[str, Any]) -> dict[str, Any]:
    """What is known of a method here; kept: what a record keeps of one that is not installed."""
    try:
        card = registry.find_method(key).card
    except UnknownNameError:
        released = {"version": 0} if kept.get("parity") == "released" else {}  # its code is not needed
        return {name: kept.get(name, "") for name in ("paper", "arxiv", "code")} | {
            "version": None,
            **released,
        }
    paper = f"{card.paper} ({card.authors}, {card.year})" if card.authors else card.paper
    return {"paper": paper, "arxiv": card.arxiv, "code": card.code, "version": card.version}


def measures(found: Sequence[Record]) -> tuple[Measure, ...]:
    """The protocols that were evaluated, with what they measure and how they chose."""
    groups: dict[tuple[str, Any], list[Record]] = defaultdict(list)
    for record in found:
        if record.kind == "evaluate" and record.status == "done":
            content = record.content
            preset = content.get("preset")
            name = f"{content['protocol']}:{preset}" if preset else content["protocol"]
            groups[name, content.get("protocol_version")].append(record)
    return tuple(
        Measure(
            protocol=name,
            version=version,
            metric=group[0].metric,
            summary=str(group[0].facts.get("summary", "")),
            candidates=max(len(record.selection.get("candidates", ())) for record in group),
            rules=tuple(dict.fromkeys(rule for r in group if (rule := r.selection.get("rule")))),
            seeds=_fewest_seeds(group),
            at_edge=sum(bool(record.selection.get("edges")) for record in group),
        )
        for (name, version), group in sorted(groups.items(), key=lambda pair: str(pair[0]))
    )


def _fewest_seeds(group: Sequence[Record]) -> tuple[int, ...]:
    """The seeds of the row that has the fewest: no mean is of more."""
    used: dict[str, set[int]] = defaultdict(set)
    for record in group:
        used[str(record.content.get("variant"))].add(record.content["seed"])
    return min((tuple(sorted(seeds)) for seeds in used.values()), key=len)


def preparation(found: Sequence[Record]) -> str:
    """How images were prepared, in a sentence; "" where no record tells."""
    said: dict[str, None] = {}
    for record in found:
        size = record.content["setting"]["image_size"]
        side = record.data.get("store_side")
        kept = f", kept at a short side of {side}" if side else ""
        if record.data:
            said[f"images of {size} × {size} pixels{kept}"] = None
        recipe = record.content.get("recipe") or {}
        if augmentation := recipe.get("augmentation"):
            crop = augmentation.get("crop_scale", ())
            flip = "with" if augmentation.get("flip") else "without"
            said[f"training crops of {' to '.join(map(plain, crop))} of the area, {flip} flips"] = None
    return "; ".join(said)


def recipes(found: Sequence[Record]) -> tuple[str, ...]:
    """The optimisation recipes of pre-training, in words."""
    told: dict[str, None] = {}
    for record in found:
        recipe = record.content.get("recipe")
        if recipe:
            named = ("base_lr", "lr_rule", "batch_size", "betas", "weight_decay", "warmup", "schedule")
            told[plain({name: recipe[name] for name in named if name in recipe})] = None
    return tuple(told)
