"""The machine-learning reproducibility checklist, filled in from records as far as records can.

The questions paraphrase "The Machine Learning Reproducibility Checklist", version 2.0, of Pineau et al.,
"Improving Reproducibility in Machine Learning Research" (arXiv:2003.12206; JMLR 22(164), 2021). What only a
paper can answer is said to be so: nothing is ticked that no record shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mimbench.repro.dossier import Answer, Cost, Data, Fact, Failure, Item, Measure, Row, Weights
from mimbench.repro.surroundings import CHANGES

SOURCE = (
    "Pineau et al., Improving Reproducibility in Machine Learning Research, arXiv:2003.12206, version 2.0"
)
PAPER = "not in the records: the text of the paper must say it"

Checked = tuple[str, str, Answer, str]  # group, question, answer, evidence


class Known:
    """What the questions are answered from: parts of a ``dossier.Report``."""

    def __init__(
        self,
        *,
        rows: Sequence[Row],
        measures: Sequence[Measure],
        data: Sequence[Data],
        weights: Sequence[Weights],
        code: Sequence[Fact],
        versions: Sequence[Fact],
        environment: Sequence[Fact],
        cost: Cost,
        failures: Sequence[Failure],
        commands: int,
        preparation: str,
        recipes: Sequence[str],
        duration: Callable[[float], str],
    ):
        self.rows, self.measures, self.data, self.weights = rows, measures, data, weights
        self.code, self.versions, self.environment = code, versions, environment
        self.cost, self.failures, self.commands = cost, failures, commands
        self.preparation, self.recipes, self.duration = preparation, recipes, duration

    def values(self, facts: Sequence[Fact], name: str) -> list[str]:
        """All values of a fact."""
        return [value.value for fact in facts if fact.name == name for value in fact.values]


def checklist(known: Known) -> tuple[Item, ...]:
    """Every question with its answer and evidence."""
    parts = (_models, _theory, _data, _code, _results)
    return tuple(
        Item(group=group, question=question, answer=answer, evidence=evidence)
        for part in parts
        for group, question, answer, evidence in part(known)
    )


def _models(known: Known) -> Iterator[Checked]:
    group = "Models and algorithms"
    unknown = [row.variant for row in known.rows if row.version is None]
    named = [f"{row.variant} (arXiv:{row.arxiv})" for row in known.rows if row.arxiv]
    evidence = f"{len(known.rows)} rows; with a published description: {_some(named) or 'none'}"
    if unknown:
        evidence += f"; unknown to this installation: {_some(unknown)}"
    yield group, "Is the model or algorithm clearly described?", "partly" if unknown else "yes", evidence
    yield group, "Are the assumptions explained?", "not known", PAPER
    cost = known.cost
    measured = (
        f"measured, not analysed: {cost.flops:.3g} FLOPs, {known.duration(cost.training_seconds)} of "
        f"training, {cost.peak_memory_bytes / 2**30:.2f} GiB at the peak"
    )
    answer: Answer = "partly" if cost.trainings else "no"
    yield group, "Is the complexity analysed (time, memory, sample size)?", answer, measured


def _theory(_: Known) -> Iterator[Checked]:
    group = "Theoretical claims"
    none = "a run makes no theoretical claim; whether the paper does is not in the records"
    yield group, "Is every claim stated clearly?", "not applicable", none
    yield group, "Is every claim proved completely?", "not applicable", none


def _data(known: Known) -> Iterator[Checked]:
    group = "Data"
    told = [
        f"{of.name}: " + ", ".join(f"{n} {name}" for name, n in of.sizes.items())
        for of in known.data
        if of.sizes
    ]
    complete = len(told) == len(known.data)
    yield (
        group,
        "Are the relevant statistics given, such as the number of examples?",
        _yes(complete),
        _some(told),
    )
    rules = list(dict.fromkeys(of.split_rule for of in known.data if of.split_rule))
    yield (
        group,
        "Are the training, validation and test splits described?",
        _yes(len([of for of in known.data if of.split_rule and of.fingerprints]) == len(known.data)),
        f"rule: {'; '.join(rules) or 'not recorded'}; each split has a fingerprint of its content",
    )
    skipped = sum(len(of.skipped) for of in known.data)
    left = (
        f"{skipped} broken files were left out, all named in this report"
        if skipped
        else "no file was left out"
    )
    yield (
        group,
        "Is it said which data were excluded and how all were prepared?",
        _yes(bool(known.preparation)),
        f"{left}; {known.preparation or 'the preparation is not recorded'}",
    )
    names = ", ".join(of.name for of in known.data)
    yield (
        group,
        "Is there a link to a copy of the data that can be downloaded?",
        "not known",
        f"the records have names ({names}) and fingerprints to recognise the data by, and no addresses",
    )
    yield group, "For newly collected data, is the collection described?", "not known", PAPER


def _code(known: Known) -> Iterator[Checked]:
    group = "Code"
    packages = [f"{fact.name} {'/'.join(v.value for v in fact.values)}" for fact in known.versions]
    yield (
        group,
        "Are the dependencies specified?",
        _yes(bool(packages)),
        _some(packages, 20) or "not recorded",
    )
    answer, evidence = _state(known)
    yield group, "Is the training code available?", answer, evidence
    versions = [f"{m.protocol}@{m.version}" for m in known.measures]
    named = f"; protocols {', '.join(versions)}" if versions else "; nothing was evaluated"
    yield (
        group,
        "Is the evaluation code available?",
        answer if versions else "not applicable",
        evidence + named,
    )
    there = sum(file.state == "matches" for file in known.weights)
    changed = sum(file.state == "differs" for file in known.weights)
    count = len(known.weights)
    stands = f"{there} of {count} files are here and have the recorded sha256"
    stands += f", {changed} are not what was written" if changed else ""
    trained: Answer = "yes" if count and there == count else "partly" if there else "no"
    yield group, "Are the trained models available?", trained, stands if count else "no weights are recorded"
    yield (
        group,
        "Does a README hold a table of results with the exact commands that give them?",
        "partly" if known.commands else "no",
        f"this report holds {_plural(known.commands, 'command line')} for the records; what a README says is "
        "not in them",
    )


def _state(known: Known) -> tuple[Answer, str]:
    commits = [value for value in known.values(known.code, "commit") if not value.startswith("not known")]
    changed = "yes" in known.values(known.code, CHANGES)
    unknown = any(value.startswith("not known") for value in known.values(known.code, "commit"))
    mimbench = known.values(known.versions, "mimbench")
    if not commits:
        return "partly", f"mimbench {'/'.join(mimbench) or 'of an unknown version'}; no commit is recorded"
    listed = f"mimbench at commit {', '.join(commit[:12] for commit in commits)}"
    if changed:
        return "partly", f"{listed}, with changed files for some records: that state is nowhere kept"
    return ("partly", f"{listed}; unknown for other records") if unknown else ("yes", f"{listed}, unchanged")


def _results(known: Known) -> Iterator[Checked]:
    group = "Experimental results"
    on_test = [m.protocol for m in known.measures if any("test" in rule.split(" ")[:2] for rule in m.rules)]
    chosen = [f"{m.protocol}: {'; '.join(m.rules)}{_of(m.candidates)}" for m in known.measures if m.rules]
    edges = sum(m.at_edge for m in known.measures)
    evidence = f"{_some(chosen) or 'nothing was chosen'}; every candidate with its score is in the records"
    if edges:
        evidence += f"; {_plural(edges, 'choice')} at the edge of what was tried"
    if on_test:
        evidence += f"; {', '.join(on_test)} chose on the test images, as published, which flatters"
    evidence += (
        f"; pre-training was not searched in these records, its recipe: {_some(known.recipes) or 'none'}"
    )
    answer: Answer = "no" if not known.measures else "partly" if on_test else "yes"
    yield group, "Are the hyper-parameters given: range, method of choice, chosen values?", answer, evidence
    failed = f", {len(known.failures)} failed" if known.failures else ", none failed"
    runs = f"{_plural(known.cost.trainings, 'training')} and {_plural(known.cost.evaluations, 'evaluation')}"
    runs += f" are done{failed}"
    yield group, "Is the exact number of training and evaluation runs given?", "yes", runs
    measures = [f"{m.metric} ({m.protocol}: {m.summary})" for m in known.measures]
    yield (
        group,
        "Is each measure that is reported clearly defined?",
        _yes(bool(measures)),
        _some(measures) or "none",
    )
    yield (group, "Are central tendency and variation reported (mean, error bars)?", *_variation(known))
    cost, done = known.cost, known.cost.evaluations
    time = (
        f"{known.duration(cost.training_seconds / max(cost.trainings, 1))} on average of "
        f"{_plural(cost.trainings, 'training')}, {known.duration(cost.evaluation_seconds / max(done, 1))} "
        f"of {_plural(done, 'evaluation')}; no energy was measured"
    )
    yield (
        group,
        "Is the average run time or the energy of each result given?",
        "yes" if cost.trainings else "partly",
        time,
    )
    machine = known.values(known.environment, "trained on") or known.values(known.environment, "cpu")
    yield (
        group,
        "Is the computing infrastructure described?",
        _yes(bool(machine)),
        "; ".join(machine) or "no record tells of its machine",
    )


def _variation(known: Known) -> tuple[Answer, str]:
    seeds = [len(m.seeds) for m in known.measures]
    bars = "error bars are 95 % intervals over the draw of test images"
    if not seeds:
        return "no", "nothing was evaluated"
    if min(seeds) >= 2:
        return "yes", f"means over {min(seeds)} seeds or more with their standard deviation; {bars}"
    if max(seeds) >= 2:
        return "partly", f"some protocols ran under one seed only, of which no spread is known; {bars}"
    return "partly", f"one seed only, so that the spread over seeds is not known; {bars}"


def _of(candidates: int) -> str:
    return f", of up to {candidates} candidates" if candidates > 1 else ""


def _plural(count: int, name: str) -> str:
    return f"{count} {name}{'' if count == 1 else 's'}"


def _yes(condition: Any) -> Answer:
    return "yes" if condition else "no"


def _some(names: Sequence[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return "; ".join(names[:most]) + more
