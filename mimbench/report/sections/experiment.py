"""The experiments that were asked of a results folder: the question, what is seen and what can be told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from mimbench import journal, stats
from mimbench.report import arm_figures, findings
from mimbench.report.sections.surroundings import Surroundings
from mimbench.report.tables import Table
from mimbench.request import About


def draw(tables: Sequence[Table], surroundings: Surroundings) -> Markup:
    """Empty where no request says what it is about."""
    asked: dict[str, tuple[About, set[str]]] = {}  # by title: asked again with other options it goes on
    for one in (one for folder in surroundings.folders for one in journal.read(folder)):
        if one.about is not None:
            _, jobs = asked.get(one.about.title, (None, set()))
            asked[one.about.title] = (one.about, jobs | set(one.jobs))
    views = [_view(about, jobs, tables) for about, jobs in asked.values()]
    return (
        surroundings.render("experiment.html", experiments=views, alpha=stats.ALPHA) if views else Markup("")
    )


def _view(about: About, jobs: set[str], tables: Sequence[Table]) -> dict[str, Any]:
    """What the template needs of one experiment."""
    axis_label = findings.axis_label(about)
    answers = []
    for number, table in enumerate(tables, start=1):
        found = findings.tasks(table, findings.arms(table, about, jobs), jobs)
        if not found:
            continue
        figures = [
            (
                (f"{task.group}: " if task.group else "") + f"{task.column.title} {task.column.heading}",
                arm_figures.drawn(
                    task, task.among_best, findings.floors(table, task, about, jobs), axis_label
                ),
            )
            for task in found
        ]
        answers.append(
            {
                "number": number,
                "setting": table.setting,
                "seeds": table.seeds,
                "figures": figures,
                "sentences": findings.sentences(found),
            }
        )
    return {"about": about, "answers": answers}
