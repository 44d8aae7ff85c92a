"""Whether what differs between two results explains their gap, in sentences. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from mimbench import stats
from mimbench.outcomes import unpack
from mimbench.repro.differences import QUESTION, SURROUNDINGS, Difference, of_kinds
from mimbench.repro.gap import Gap
from mimbench.repro.verdict import WHOLE, chance, score
from mimbench.spec import Record

MOST = 4  # names in one sentence


def explain(
    found: list[Difference], apart: Gap | str, mine: Sequence[Record], theirs: Sequence[Record]
) -> list[str]:
    """The verdict on two results: what the gap is, then what explains it.

    found: see ``differences``. apart: their gap, or why there is none. mine, theirs: one record a seed.
    """
    asked, around = of_kinds(found, QUESTION), of_kinds(found, SURROUNDINGS)
    seed = of_kinds(found, frozenset({"seed"}))
    sentences = [apart if isinstance(apart, str) else told(apart)]
    alike = equal(mine, theirs)
    if asked:
        sentences.append(f"{_kinds(asked)} differ in {_names(asked)}: a different question")
    if seed:
        sentences.append(_of_seeds(apart, bool(asked)))
    elif not asked:
        sentences.append(_of_same_content(alike, around, found, mine[0].environment, theirs[0].environment))
    if not isinstance(apart, str) and not alike:
        if not seed and apart.within_seeds is not None:
            sentences.append(_of_seeds(apart, bool(asked)))
        if not apart.told_apart:
            sentences.append(
                "the gap is no larger than chance over the test images: nothing needs to be explained"
            )
        elif asked:
            sentences.append(
                f"the gap is more than chance over the test images; {asked[0].name} is the likeliest reason"
            )
    if asked and around:
        sentences.append(f"code, versions or machine differ too, in {_names(around)}")
    return sentences


def told(gap: Gap) -> str:
    """The gap in numbers."""
    points = 100 if gap.unit == "share" else 1
    unit = " points" if gap.unit == "share" else ""
    between = ""
    if gap.low is not None and gap.high is not None:
        between = f", {stats.LEVEL:.0%} interval [{points * gap.low:+.3g}, {points * gap.high:+.3g}]"
    return (
        f"{gap.metric} {score(gap.a, gap.unit)} and {score(gap.b, gap.unit)}: a gap of "
        f"{points * gap.difference:+.3g}{unit}{between}, "
        f"{chance(gap.p)} on the same {gap.images} images"
    )


def equal(mine: Sequence[Record], theirs: Sequence[Record]) -> bool:
    """Whether the two came out alike, bit for bit."""
    if len(mine) != len(theirs) or any(r.status != "done" for r in (*mine, *theirs)):
        return False
    for one, other in zip(mine, theirs, strict=True):
        if one.kind != other.kind:
            return False
        if one.kind != "evaluate":
            if one.product.get(WHOLE, one.product) != other.product.get(WHOLE, other.product):
                return False
            continue
        try:
            if unpack(one.outcomes).pack() != unpack(other.outcomes).pack():
                return False
            if any(other.metrics.get(name, value) != value for name, value in one.metrics.items()):
                return False
        except ValueError:
            return False
    return True


def _of_seeds(apart: Gap | str, asked: bool) -> str:
    if isinstance(apart, str):
        return "the seeds differ: another draw of the initialisation and of the data's order"
    if apart.seeds_apart is None:
        return (
            "how much seeds alone would do is not known: no row here has several; run both with --seeds 0,1,2"
        )
    factor, unit = (100, " points") if apart.unit == "share" else (1, "")
    what = (
        f"two seeds of one row lie up to {factor * apart.seeds_apart:.3g}{unit} apart in 95 of 100 cases "
        f"(spread {factor * (apart.spread or 0):.3g} over {apart.seeds_known} results)"
    )
    if apart.within_seeds:
        return f"the difference is within the spread over seeds: {what}"
    more = "" if asked else ", so that the seed alone does not explain it"
    return f"the difference is larger than the spread over seeds: {what}{more}"


def _of_same_content(
    alike: bool, around: list[Difference], found: list[Difference], mine: dict, theirs: dict
) -> str:
    if alike:
        beside = f", although {_names(around)} differ" if around else ""
        return f"the same was asked and the same came out, bit for bit{beside}"
    if around:
        return f"same content, other surroundings: not reproducible bit for bit across {_names(around)}"
    if not (mine and theirs):
        return "the same was asked; one record says nothing of its machine and versions"
    weights = next((d for d in found if d.kind == "weights"), None)
    more = " (the weights differ already: compare the pre-trainings)" if weights else ""
    return f"the same was asked in the same surroundings, and nothing recorded explains the gap{more}"


def _kinds(found: list[Difference]) -> str:
    words = {"question": "protocols", "method": "methods or their settings", "setting": "settings"}
    kinds = [words.get(kind, kind) for kind in dict.fromkeys(d.kind for d in found)]
    return " and ".join(kinds)


def _names(found: list[Difference]) -> str:
    names = [d.name for d in found[:MOST]]
    more = f" and {len(found) - MOST} more" if len(found) > MOST else ""
    return ", ".join(names) + more
