"""From a request to the jobs it takes: what is trained, what is evaluated, what needs what.

A job's id is a hash of its content, so plans of different requests share the jobs they have in common,
and what is left to do is a set difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimbench.choice import Choice, choose_protocols
from mimbench.progress import Progress, silent
from mimbench.recipes import recipe_for
from mimbench.rows import choose_variants
from mimbench.spec import Budget, Job, Setting
from mimbench.variants import Assignments, Released, Variant

if TYPE_CHECKING:
    from mimbench.data import DataDefaults, Dataset
    from mimbench.request import Request

RELEASED_SIZE = 224  # pixels of the images that released encoders are shown, unless the request says else


@dataclass(frozen=True)
class Plan:
    """Jobs in an order in which each comes after those it needs."""

    settings: tuple[Setting, ...]  # of its rows; several where released weights have several backbones
    jobs: tuple[Job, ...]
    files: Mapping[str, Path] = field(default_factory=dict)  # given weights by what jobs call them
    left_out: tuple[str, ...] = ()  # sentences on protocols that "all" does not include

    @property
    def setting(self) -> Setting:
        """The first of its settings; data and precision are those of all."""
        return self.settings[0]

    def __iter__(self) -> Iterator[Job]:
        return iter(self.jobs)

    def __len__(self) -> int:
        return len(self.jobs)

    def dependants(self, job: Job) -> list[Job]:
        return [other for other in self.jobs if job.id in other.needs]


def make_plan(
    request: Request,
    datasets: Sequence[Dataset],
    precision: str,
    report: Callable[[Progress], None] = silent,
) -> Plan:
    """All jobs that ``request`` takes.

    datasets: the first is pre-trained on; all are evaluated on, by the protocols of their task.
    precision: what the request's precision comes down to on this device. report: hears how far weights are
    that have to be fetched.
    Raises UserError for whatever of the request cannot work, before any work starts.
    """
    data = datasets[0]
    assigned = Assignments(request.set)
    labelled = data.classes is not None and data.task == "classification"
    variants = choose_variants(request, labelled, assigned, report)
    choices, left_out = choose_protocols(request.protocol, datasets, assigned)
    assigned.check_all_met()

    jobs: dict[str, Job] = {}
    for seed in dict.fromkeys(request.seeds):
        for variant in variants:
            setting = _setting(request, data, precision, variant)
            pretrain = _pretrain_jobs(variant, setting, seed, data.defaults)
            jobs |= {job.id: job for job in pretrain}
            for choice in choices:
                job = _evaluate_job(variant, setting, seed, choice, pretrain[-1])
                jobs[job.id] = job
    files = {sha256: path for variant in variants for sha256, path in variant.files.items()}
    settings = tuple(dict.fromkeys(_setting(request, data, precision, variant) for variant in variants))
    return Plan(settings, tuple(jobs.values()), files, left_out)


def _setting(request: Request, data: Dataset, precision: str, variant: Variant | Released) -> Setting:
    """What is held equal for a row and those it stands beside."""
    known: dict[str, Any] = {"data": data.name, "fingerprint": data.fingerprint, "precision": precision}
    if variant.backbone is not None:
        size = request.image_size or RELEASED_SIZE
        return Setting.of_released(image_size=size, backbone=variant.backbone, **known)
    return Setting(
        image_size=request.image_size or data.defaults.image_size,
        backbone=request.backbone or data.defaults.backbone,
        budget=request.budget or Budget(unit="epochs", amount=data.defaults.epochs),
        recipe=request.recipe,
        batch_size=request.batch_size,
        **known,
    )


def _pretrain_jobs(
    variant: Variant | Released, setting: Setting, seed: int, defaults: DataDefaults
) -> list[Job]:
    """The job that makes the variant's encoder, last; before it what it needs."""
    if isinstance(variant, Released):
        content = variant.content() | {"setting": setting.content(), "seed": seed, "recipe": None}
        work = "untrained" if variant.untrained else "released weights"
        return [Job(kind="pretrain", name=f"{variant.label} · {work} · seed {seed}", content=content)]
    before: list[Job] = []
    needs: list[str] = []  # in the order of the keywords they are for
    kind = "tokenizer" if variant.cls.card.role == "tokenizer" else "pretrain"
    for _, source in sorted(variant.provided.items()):
        if isinstance(source, Variant):
            before += _pretrain_jobs(source, setting, seed, defaults)
            needs.append(before[-1].id)
    recipe = recipe_for(variant.cls.card, setting.recipe)
    if recipe is not None:
        augmentation = defaults.suit(recipe.augmentation)
        recipe = recipe.model_copy(update={"augmentation": augmentation})
    content = variant.content() | {
        "setting": setting.content(),
        "seed": seed,
        "recipe": recipe and recipe.content(),
    }
    work = "tokenizer" if kind == "tokenizer" else "pre-training"
    if variant.provided:
        work += f" with {variant.sources}"
    name = f"{variant.label} · {work} · seed {seed}"
    return [*before, Job(kind=kind, name=name, content=content, needs=tuple(needs))]


def _evaluate_job(
    variant: Variant | Released, setting: Setting, seed: int, choice: Choice, pretrain: Job
) -> Job:
    content = variant.content() | {
        "protocol": choice.cls.key,
        "protocol_version": choice.cls.version,
        "fields": choice.fields,
        "setting": setting.content(),
        "seed": seed,
    }
    name = f"{variant.label} · {choice.label}"
    if choice.preset:
        content["preset"] = choice.preset
    if choice.built_on:
        content["built_on"] = choice.built_on
    data = choice.data
    if data.fingerprint != setting.fingerprint:
        content["data"] = {"name": data.name, "fingerprint": data.fingerprint, "task": data.task}
        name += f" · {data.name}"
    return Job(kind="evaluate", name=f"{name} · seed {seed}", content=content, needs=(pretrain.id,))
