"""The reproducibility report as data: HTML, Markdown and JSON are drawn from this and nothing else."""

from __future__ import annotations

from typing import Any, Literal

from mimbench.spec import Frozen

FORMAT = 1  # of report.json; raised when an older reader would misread it

Answer = Literal["yes", "partly", "no", "not known", "not applicable"]


class Asked(Frozen):
    """A request: what it was about, as an experiment file and as a command line.

    noted: whether the results folder noted it; otherwise it was put together from the records, and asks
    for what they answer and perhaps for more.
    """

    id: str = ""
    title: str = ""
    question: str = ""
    noted: bool
    options: dict[str, Any]
    yaml: str
    command: str
    jobs: int
    first: str = ""
    last: str = ""


class JobLine(Frozen):
    """A job and what became of it."""

    record: str
    kind: str
    name: str
    status: str
    seed: int | None
    seconds: float
    finished: str


class Changed(Frozen):
    """A setting that is not at its default. owner: "mae", "linprobe:mae" or "run"."""

    owner: str
    name: str
    value: Any
    default: Any


class Value(Frozen):
    """One value of a fact, and how many records have it."""

    value: str
    records: int


class Fact(Frozen):
    """A fact of the surroundings; more than one value means that the run is mixed."""

    name: str
    values: tuple[Value, ...]

    @property
    def mixed(self) -> bool:
        return len(self.values) > 1


class Data(Frozen):
    """A data set that was trained or evaluated on."""

    name: str
    used_for: tuple[str, ...]
    task: str
    fingerprint: str
    sizes: dict[str, int]
    fingerprints: dict[str, str]
    classes: int | None
    split_rule: str
    store_side: int | None
    skipped: tuple[str, ...]
    notes: tuple[str, ...]


class Weights(Frozen):
    """A file that a training wrote. state: of the file there now, after its sha256 was computed anew."""

    record: str
    name: str
    file: str
    sha256: str
    state: Literal["matches", "missing", "differs"]


class Released(Frozen):
    """Weights that were trained elsewhere: what is known of them, in words; "" for what is not."""

    variant: str
    trained_on: str
    told: str  # beside the images: "labels", "tokenizer: DALL-E's"
    licence: str
    address: str
    file: str
    sha256: str
    layout: str


class Row(Frozen):
    """A row of the tables: what was trained, by whom it is published, under which seeds."""

    variant: str
    paper: str
    arxiv: str
    code: str
    role: str
    version: int | None
    seeds: tuple[int, ...]


class Measure(Frozen):
    """A protocol: what it measures and how it chose."""

    protocol: str
    version: int | None
    metric: str
    summary: str
    candidates: int
    rules: tuple[str, ...]
    seeds: tuple[int, ...]
    at_edge: int  # results whose choice lies at the edge of what was tried


class Cost(Frozen):
    """What everything took together, each training counted once, tokenizers and teachers included.

    device_hours: of training, hours times processes, by device. peak_memory_bytes: the greatest of all jobs.
    """

    training_seconds: float
    before_seconds: float
    evaluation_seconds: float
    flops: float
    images: int
    peak_memory_bytes: int
    device_hours: dict[str, float]
    trainings: int
    evaluations: int


class Failure(Frozen):
    """A job that failed, and its sentence."""

    record: str
    name: str
    error: str


class Item(Frozen):
    """A question of the reproducibility checklist with its answer and what it rests on."""

    group: str
    question: str
    answer: Answer
    evidence: str


class Report(Frozen):
    """Everything that is known of a run and that somebody else needs to repeat it."""

    format: int = FORMAT
    folder: str
    narrowed_to: tuple[str, ...]
    made_at: str
    made_with: str
    first: str
    last: str
    asked: tuple[Asked, ...]
    jobs: tuple[JobLine, ...]
    rows: tuple[Row, ...]
    measures: tuple[Measure, ...]
    settings: tuple[str, ...]  # what was held fixed, a line a table
    changed: tuple[Changed, ...]
    remarks: tuple[str, ...]  # what of the defaults and requests is not known, and why
    mixed: tuple[str, ...]  # sentences on more than one machine, version or commit in one run
    environment: tuple[Fact, ...]
    versions: tuple[Fact, ...]
    code: tuple[Fact, ...]
    data: tuple[Data, ...]
    weights: tuple[Weights, ...]
    released: tuple[Released, ...] = ()
    seeds: tuple[int, ...]
    cost: Cost
    failures: tuple[Failure, ...]
    contradictions: tuple[str, ...]  # records that contradict themselves, as after an edit by hand
    checklist: tuple[Item, ...]
    again: tuple[str, ...]  # command lines, in order
    advice: tuple[str, ...]  # what no command line says
