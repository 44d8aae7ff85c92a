"""Methods over several data sets: mean ranks, critical differences, performance profiles."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from mimbench import across
from mimbench.across import Comparison, Profile
from mimbench.report import across_figures, text
from mimbench.report.sections.surroundings import Surroundings
from mimbench.report.tables import Table
from mimbench.stats import ALPHA

DRAWN = 4  # blocks that a profile is drawn of; fewer are steps that the table says as well
NAMED = 12  # methods that are left out, by name and reason; the others are counted


def draw(tables: Sequence[Table], surroundings: Surroundings) -> Markup:
    """Empty where no two methods were measured on two blocks."""
    comparisons = across.comparisons(tables)
    profiles = across.profiles(tables)
    if not profiles and not any(len(one.scores) > 1 for one in comparisons):
        return Markup("")
    return surroundings.render(
        "across.html",
        comparisons=[_comparison(one) for one in comparisons],
        profiles=[_profile(one) for one in profiles],
        least=across.LEAST,
        alpha=ALPHA,
        named=NAMED,
        probability=text.probability,
        number=text.number,
        percent=text.percent,
    )


def _comparison(one: Comparison) -> dict[str, object]:
    same = len({block.definition for block in one.blocks}) == 1
    data = [block.data for block in one.blocks]
    return {
        "one": one,
        "heads": data if same and len(set(data)) == len(data) else [block.title for block in one.blocks],
        "friedman": one.friedman,
        "apart": one.friedman is not None and one.friedman.f_p < ALPHA,
        "drawing": across_figures.critical_difference(one),
        "rows": [
            (name, mean, [f"{rank:g}" for rank in one.ranks.loc[name]])
            for name, mean in one.mean_ranks.items()
        ],
    }


def _profile(one: Profile) -> dict[str, object]:
    summary = one.summary()
    return {
        "one": one,
        "drawing": across_figures.profile(one, list(summary.index)) if len(one.blocks) >= DRAWN else "",
        "drawn": min(across_figures.SERIES, len(summary)),
        "rows": list(summary.itertuples()),
        "data_sets": len({block.fingerprint for block in one.blocks}),
    }
