"""Does one job: trains what is to be trained, evaluates what is to be evaluated, and says what came out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mimbench import checkpoint, registry, settings
from mimbench.cost import Cost
from mimbench.errors import UserError
from mimbench.ledger import FED_ON, Ledger
from mimbench.precision import make_fabric
from mimbench.processes import on_first
from mimbench.progress import Progress
from mimbench.provenance import environment
from mimbench.spec import Job, Recipe, Record, Setting
from mimbench.train import build_method, pretrain

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from mimbench.data import Dataset
    from mimbench.method import Method

Report = Callable[[Progress], None]


class Workshop:
    """Everything that jobs need around them and that does not decide what comes out.

    data: what is pre-trained on. others: what else is evaluated on.
    files: where weights given by the user lie, by their sha256.
    micro_batch, workers: see ``mimbench.train.pretrain``.
    fabric: of a torchrun launch; alone, a process makes its own when first needed.
    """

    def __init__(
        self,
        data: Dataset,
        *others: Dataset,
        ledger: Ledger,
        setting: Setting,
        files: Mapping[str, Path],
        micro_batch: int | None = None,
        workers: int = 0,
        fabric: Fabric | None = None,
    ):
        self.data, self.ledger, self.setting = data, ledger, setting
        self._datasets = {dataset.fingerprint: dataset for dataset in (*others, data)}
        self.files = files
        self.micro_batch, self.workers = micro_batch, workers
        self.world_size = fabric.world_size if fabric else 1
        if fabric:
            self.__dict__["fabric"] = fabric

    @cached_property
    def fabric(self) -> Fabric:
        return make_fabric(self.setting.precision)

    def perform(self, job: Job, report: Report) -> Record:
        """Do the job and describe it; whatever goes wrong is raised."""
        started = datetime.now(timezone.utc)
        if job.kind == "evaluate":
            from mimbench.evaluate import evaluate

            outcome = evaluate(job, self, report)
        else:
            outcome = self._pretrain(job, report)
        return Record(
            id=job.id,
            kind=job.kind,
            name=job.name,
            status="done",
            content=job.content,
            data=self.data_of(job).describe(),
            environment=environment(),
            started=started.isoformat(timespec="microseconds"),
            finished=datetime.now(timezone.utc).isoformat(timespec="microseconds"),
            **outcome,
        )

    def data_of(self, job: Job) -> Dataset:
        """The data a job trains or is evaluated on."""
        other = job.content.get("data")
        return self._datasets[other["fingerprint"]] if other else self.data

    def _pretrain(self, job: Job, report: Report) -> dict[str, Any]:
        """Fields of the record of a pretrain or tokenizer job."""
        if "released" in job.content:
            from mimbench.weights.adopt import adopt

            path = self.files[job.content["released"]["key"]]
            return on_first(
                self.fabric, lambda: adopt(job, path, self.ledger.weights(job.id), self.fabric.device)
            )
        needs = {need: self.product(need) for need in job.needs}
        method = self.method(job)
        trained = pretrain(
            method,
            self.data,
            recipe=recipe_of(job),
            setting=Setting.model_validate(job.content["setting"]),
            seed=job.content["seed"],
            folder=self.ledger.weights(job.id),
            report=report,
            micro_batch=self.micro_batch,
            workers=self.workers,
            fabric=self.fabric,
        )
        if FED_ON[job.kind] not in trained.product:
            raise RuntimeError(f"the training of {job.name} wrote no {FED_ON[job.kind]}")
        return {
            "needs": needs,
            "product": trained.product,
            "cost": self._with_external(job, trained.cost),
            "curve": trained.curve,
            "facts": {**trained.facts, "card": method.card.facts()},
        }

    def method(self, job: Job, stand_ins: Mapping[str, Job] | None = None) -> Method:
        """The freshly initialised method of a pretrain or tokenizer job.

        stand_ins: all jobs of the plan by id: what this one needs is then not loaded but initialised too,
        which serves to check sizes and to measure speed. By default it is loaded.
        """
        content = job.content
        cls = registry.find_method(content["method"])
        return build_method(
            cls,
            setting=Setting.model_validate(content["setting"]),
            settings=settings.arguments(cls, content["settings"]),
            seed=content["seed"],
            num_classes=len(self.data.classes) if self.data.classes is not None else None,
            provided=self._provided(job, stand_ins),
            recipe=recipe_of(job),
        )

    def _provided(self, job: Job, stand_ins: Mapping[str, Job] | None) -> dict[str, Any]:
        """The tokenizers and teachers of a job's method, by keyword."""
        needs = iter(job.needs)  # in the order of the keywords they are for, see plan._pretrain_jobs
        provided: dict[str, Any] = {}
        for name, wanted in sorted(job.content.get("provided", {}).items()):
            given = wanted.get("sha256")
            need = None if given else next(needs)
            tokenizer = name.endswith("tokenizer")
            if need and stand_ins is not None:
                network = self.method(stand_ins[need], stand_ins)
                provided[name] = network if tokenizer else registry.as_teacher(network)
                continue
            if need:
                self.product(need)
                path = self.ledger.weights(need) / FED_ON["tokenizer" if tokenizer else "pretrain"]
            else:
                path = self.files[given]
            provided[name] = (
                registry.load_tokenizer(path) if tokenizer else registry.load_teacher(path, self._grid(job))
            )
        return provided

    def _grid(self, job: Job) -> tuple[int, int]:
        """The patch grid of a job's encoder, without the work of initialising one."""
        setting = Setting.model_validate(job.content["setting"])
        cls = registry.find_method(job.content["method"])
        options = cls.backbone_options(settings.arguments(cls, job.content["settings"]))
        with torch.device("meta"):
            return registry.build_backbone(setting.backbone, setting.image_size, **options).grid

    def product(self, job_id: str) -> str:
        """The sha256 of what a finished job hands on; raises UserError when the file is not what it wrote."""
        record = self.ledger.record(job_id)
        if record is None:
            raise RuntimeError(f"job {job_id} has no record yet")
        name = FED_ON[record.kind]
        path = self.ledger.weights(job_id) / name
        if not path.is_file() or checkpoint.sha256(path) != record.product[name]:
            raise UserError(
                f"{path} is not what {record.name} wrote; delete its folder and run again to make it anew"
            )
        return record.product[name]

    def _with_external(self, job: Job, cost: dict[str, Any]) -> dict[str, Any]:
        """A job's cost with that of what was trained for it beside it, by keyword."""
        trained = [name for name, of in sorted(job.content.get("provided", {}).items()) if "sha256" not in of]
        external = {}
        for name, need in zip(trained, job.needs, strict=True):
            record = self.ledger.record(need)
            assert record is not None
            external[name] = Cost.model_validate(record.cost)
        return Cost.model_validate(cost).with_external(**external).content() if external else cost


def recipe_of(job: Job) -> Recipe | None:
    """The recipe in a job's content."""
    recipe = job.content["recipe"]
    return None if recipe is None else Recipe.model_validate(recipe)
