"""What a study of clusterings found, in sentences that need no knowledge of clustering."""

from __future__ import annotations

import math
from collections.abc import Iterator

from mimbench.survey.agreement import Agreement
from mimbench.survey.clusters import ALGORITHMS, VARIANTS
from mimbench.survey.study import QUANTILE, Study
from mimbench.survey.texts import NGRAMS, WEIGHTINGS

AXES = {"ngrams": NGRAMS, "weighting": WEIGHTINGS, "algorithm": ALGORITHMS}


def number(value: float, digits: int = 2) -> str:
    """A number rounded, with a true minus; an en dash for what is not defined."""
    return "–" if math.isnan(value) else f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def grade(rand: float) -> str:
    """A word for an adjusted Rand index or a share of shared pairs."""
    for bound, word in ((0.9, "almost the same"), (0.65, "much alike"), (0.35, "partly alike")):
        if rand >= bound:
            return word
    return "hardly alike" if rand >= 0.1 else "no more alike than chance makes them"


def papers(count: int) -> str:
    """ "1 paper", "3 papers"."""
    return f"{count} paper" + "s" * (count != 1)


def sentences(study: Study) -> list[str]:
    """The findings, most important first."""
    n = len(study.bibliography.papers)
    chosen = next(choice for choice in study.choices if choice.k == study.k)
    stable = int(study.stable.sum())
    why = (
        "as asked"
        if study.asked
        else "the number at which papers find the most stable places, beyond what shuffled words give"
    )
    told = [
        f"{papers(n)} in {study.k} clusters ({why}).",
        f"{len(VARIANTS)} ways to cluster them (n-grams, weightings, algorithms) are {grade(chosen.rand)}: "
        f"mean adjusted Rand index {number(chosen.rand)}, where 1 is the same clusters and 0 chance; words "
        f"shuffled over the papers give {number(chosen.rand_chance)}.",
        f"{stable} of {papers(n)} {'has' if stable == 1 else 'have'} a stable place: in {study.least:.0%} or "
        f"more of the clusterings together with the others of the cluster. (The bar is what "
        f"{1 - QUANTILE:.0%} of papers with shuffled words reach, and one half at least.)",
        f"Silhouette of the survey's clustering (TF-IDF, Ward): {number(chosen.silhouette, 3)}; "
        + (
            "the clusters are set apart clearly."
            if chosen.silhouette >= 0.5
            else "the clusters overlap."
            if chosen.silhouette >= 0.1
            else "there are hardly any gaps between the clusters."
        ),
    ]
    least, most = (pick(study.changed(), key=lambda pair: pair[1]) for pick in (min, max))
    told.append(
        f"One thing changed in the survey's way moves papers least with “{most[0]}” (adjusted Rand index "
        f"{number(most[1])}) and most with “{least[0]}” ({number(least[1])})."
    )
    told.append(_agreement(study))
    told += [f"Left out: {title!r} {reason}." for title, reason in study.bibliography.left_out]
    return told


def _agreement(study: Study) -> str:
    known = sum(work is not None for work in study.works)
    if not study.agreements:
        return f"{papers(known)} known to mimbench's list of works; too few to compare with a filing by hand."
    found = [entry for entry in study.agreements if entry.p <= 0.05]
    start = f"{papers(known)} known to mimbench's list of works. " if known else ""
    if not found:
        return start + "The survey's clustering agrees with no filing by hand beyond chance."
    best = max(found, key=lambda entry: entry.rand)
    others = [entry.criterion for entry in found if entry is not best]
    return (
        f"{start}Of the filings by hand the survey's clustering agrees best with {best.criterion} (adjusted "
        f"Rand index {number(best.rand)}, p = {best.p:.3f}, {papers(best.papers)})"
        + (f"; beyond chance also with {', '.join(others)}" if others else "")
        + "."
    )


def axes(study: Study) -> Iterator[tuple[str, str, float, float]]:
    """Axis, value, mean adjusted Rand index of its clusterings with all others, and by chance."""
    for axis, values in AXES.items():
        for value in values:
            name = "-".join(map(str, dict.fromkeys(value))) if isinstance(value, tuple) else str(value)
            yield axis, name, *study.between(axis, value)


def unstable(study: Study) -> list[tuple[str, float]]:
    """Titles without a stable place and their support, the least first."""
    found = [
        (paper.title, float(share))
        for paper, share, there in zip(study.bibliography.papers, study.support, study.stable, strict=True)
        if not there
    ]
    return sorted(found, key=lambda pair: pair[1])


def both(study: Study) -> list[tuple[Agreement, Agreement]]:
    """Agreements of the survey's clustering and of the consensus, criterion by criterion."""
    return list(zip(study.agreements, study.consensus_agreements, strict=True))
