"""Training: one process or many (torchrun), any device, any budget, killed and resumed at will.

method = build_method(MAE, setting=setting, settings={}, seed=0, recipe=MAE.card.recipe)
trained = pretrain(method, dataset, recipe=MAE.card.recipe, setting=setting, seed=0, folder=folder)

``fit`` is the same for what a protocol trains.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning_fabric import Fabric
from torch import nn

from mimbench import checkpoint
from mimbench.cost import Cost, device_name, parameters
from mimbench.course import Course, Visits
from mimbench.errors import UserError
from mimbench.files import make_folder
from mimbench.method import Method
from mimbench.monitor import TrainingStopped
from mimbench.precision import make_fabric, precision_of
from mimbench.processes import on_first
from mimbench.progress import Progress, silent
from mimbench.registry import build_backbone
from mimbench.seeding import seeded_init
from mimbench.spec import Recipe, Setting, View, content_hash
from mimbench.train_loop import Run
from mimbench.trainee import Trainee

if TYPE_CHECKING:
    from mimbench.data import Dataset

__all__ = ["Trained", "TrainingStopped", "build_method", "fit", "make_fabric", "pretrain", "seeded_init"]

CHECKPOINT_FILE = "checkpoint.pt"
METHOD_FILE = "method.safetensors"
TOKENIZER_FILE = "tokenizer.safetensors"


@dataclass(frozen=True)
class Trained:
    """What a pre-training job gives back, JSON data all of it."""

    cost: dict[str, Any]  # see mimbench.cost.Cost
    curve: list[dict[str, float]]  # progress, images, lr, loss and each term as "loss/<name>"
    product: dict[str, str]  # file name in the folder -> sha256
    data: dict[str, Any] = field(default_factory=dict)  # the dataset's description
    facts: dict[str, Any] = field(default_factory=dict)  # the method's description


def build_method(
    cls: type[Method],
    *,
    setting: Setting,
    settings: Mapping[str, Any],
    seed: int,
    num_classes: int | None = None,
    provided: Mapping[str, Any] | None = None,
    recipe: Recipe | None = None,
) -> Method:
    """A freshly initialised method on the setting's backbone; the same weights on every process.

    num_classes: handed on where the method's ``__init__`` asks for it. provided: tokenizers and teachers by
    keyword, see ``Method.needs``.
    """
    options = cls.backbone_options(settings)
    if recipe is not None and recipe.drop_path > 0:
        options["drop_path"] = recipe.drop_path
    more = dict(provided or {})
    if "num_classes" in inspect.signature(cls.__init__).parameters:
        more["num_classes"] = num_classes
    # Beside released weights nothing is trained: their shapes are all that a floor reads of them.
    shapes = torch.device("meta") if setting.released else nullcontext()
    with seeded_init(seed):
        with shapes:
            backbone = build_backbone(setting.backbone, setting.image_size, **options)
        method = cls(backbone, **settings, **more)
    method.settings = dict(settings)
    return method


def pretrain(
    method: Method,
    dataset: Dataset,
    *,
    recipe: Recipe | None,
    setting: Setting,
    seed: int,
    folder: Path,
    report: Callable[[Progress], None] = silent,
    micro_batch: int | None = None,
    workers: int = 0,
    fabric: Fabric | None = None,
    checkpoint_every: float = 60.0,
) -> Trained:
    """Pre-train ``method`` on ``dataset.train`` for the setting's budget and write its weights to ``folder``.

    recipe: None leaves the weights as they are, at no cost.
    micro_batch: images a process takes at once; more are accumulated. None takes all of a step.
    checkpoint_every: seconds between checkpoints; one is also written at Ctrl-C and SIGTERM.

    Raises TrainingStopped for a loss that is NaN, infinite or collapsed, UserError for a full disk, too
    little memory, missing labels or a foreign checkpoint, KeyboardInterrupt after it has saved.
    """
    fabric = fabric or make_fabric(setting.precision)
    folder = Path(folder)
    _check(method, dataset, setting, fabric)
    on_first(fabric, lambda: _prepare(folder))
    cost = _fixed_cost(method, fabric)
    curve: list[dict[str, float]] = []
    if recipe is not None:
        budget, batch_size = setting.training
        identity = {
            "method": method.card.key,
            "version": method.card.version,
            "settings": dict(method.settings),
            "recipe": recipe.content(),
            "setting": setting.identity(),
            "seed": seed,
            "data": dataset.fingerprint,
        }
        course = Course(
            dataset.train,
            recipe,
            dataset.defaults.suit(recipe.augmentation),
            setting.image_size,
            batch_size,
            budget,
            seed,
        )
        run = Run(
            method,
            course,
            identity=content_hash(identity),
            path=folder / CHECKPOINT_FILE,
            fabric=fabric,
            report=report,
            stage="pre-training",
            checkpoint_every=checkpoint_every,
            views=dataset.defaults.suit_views(method.views),
        )
        with seeded_init(seed, "train"):
            run.train(micro_batch, workers)
        cost, curve = run.cost(cost), run.curve.points
    product = on_first(fabric, lambda: _write_product(method, folder))
    return Trained(cost.content(), curve, product, dataset.describe(), method.description())


def fit(
    trainee: Trainee,
    course: Course,
    *,
    identity: Mapping[str, Any],
    path: Path,
    fabric: Fabric,
    stage: str,
    report: Callable[[Progress], None] = silent,
    micro_batch: int | None = None,
    workers: int = 0,
    checkpoint_every: float = 60.0,
    views: tuple[View, ...] = (),
    visits: Visits | None = None,
) -> tuple[Cost, list[dict[str, float]]]:
    """Train ``trainee`` through ``course``, by the loop that pre-trains; its cost and learning curve.

    Collective: every process calls it with the same arguments, and ends with the same weights.

    identity: JSON data, all that its initial weights and its losses depend on; the rest is the course.
    path: of the checkpoint that it goes on from if there is one, and that its caller deletes when it has kept
    what came out.
    stage: what reports call it. views: the trainee's, as the images bear them.
    visits: looks at the trainee now and then, such as to score it on validation.

    Raises as ``pretrain`` does.
    """
    if course.batch_size % fabric.world_size:
        raise UserError(
            f"a batch size of {course.batch_size} does not divide over {fabric.world_size} processes; "
            "take a multiple of their number"
        )
    on_first(fabric, lambda: _prepare(path.parent))
    run = Run(
        trainee,
        course,
        identity=content_hash({"trainee": dict(identity), "course": course.identity()}),
        path=path,
        fabric=fabric,
        report=report,
        stage=stage,
        checkpoint_every=checkpoint_every,
        views=views,
        visits=visits,
    )
    with seeded_init(course.seed, "train"):
        run.train(micro_batch, workers)
    return run.cost(_fixed_cost(trainee, fabric)), run.curve.points


def _fixed_cost(trainee: Trainee, fabric: Fabric) -> Cost:
    return Cost(
        parameters_encoder=parameters(trainee.encoder),
        parameters_total=parameters(trainee),
        device=device_name(fabric.device),
        processes=fabric.world_size,
    )


def _check(method: Method, dataset: Dataset, setting: Setting, fabric: Fabric) -> None:
    if precision_of(fabric) != setting.precision:
        raise ValueError(f"the fabric trains in {precision_of(fabric)}, the setting says {setting.precision}")
    if setting.batch_size is not None and setting.batch_size % fabric.world_size:
        raise UserError(
            f"a batch size of {setting.batch_size} does not divide over {fabric.world_size} processes; "
            "take a multiple of their number"
        )
    if method.card.external == "labels" and dataset.train.labels is None:
        raise UserError(
            f"{method.card.key} learns from labels, which {dataset.name} does not have; leave it out"
        )


def _prepare(folder: Path) -> None:
    for leftover in make_folder(folder).glob(".*.tmp"):  # of a process that was killed while it wrote
        leftover.unlink(missing_ok=True)


def _write_product(method: Method, folder: Path) -> dict[str, str]:
    card = method.card
    about = {"method": card.key, "card_version": card.version, "settings": dict(method.settings)}
    files: dict[str, tuple[nn.Module, dict[str, Any]]]
    if card.role == "tokenizer":
        files = {TOKENIZER_FILE: (method, {**about, "config": getattr(method, "config", {})})}
    else:
        described = {**about, **checkpoint.encoder_metadata(method.product, card)}
        files = {checkpoint.ENCODER_FILE: (method.product, described), METHOD_FILE: (method, about)}
    product = {
        name: checkpoint.save_weights(folder / name, module, metadata)
        for name, (module, metadata) in files.items()
    }
    (folder / CHECKPOINT_FILE).unlink(missing_ok=True)
    return product
