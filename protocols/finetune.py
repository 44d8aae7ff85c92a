"""End-to-end fine-tuning: the encoder and a linear head learn the task together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, fields
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from mimbench.errors import UserError
from mimbench.features import weights_sha256
from mimbench.outcomes import Hits
from mimbench.precision import make_fabric
from mimbench.protocol import ChooseOn, Evaluation, Protocol, Surroundings
from mimbench.selection import select_and_test
from mimbench.spec import Augmentation, Recipe
from protocols.parts.classifier import Classifier, Viewing
from protocols.parts.finetune_recipes import RECIPES
from protocols.parts.finetuning import FineTuning, Regularisation
from protocols.parts.search import Plan, Search

if TYPE_CHECKING:
    from mimbench.data import Dataset
    from mimbench.encoder import Encoder

_Positive = Annotated[float, Field(gt=0)]
_NotNegative = Annotated[float, Field(ge=0)]
_Share = Annotated[float, Field(ge=0, lt=1)]
_Probability = Annotated[float, Field(ge=0, le=1)]

SMALLEST_BATCH = 128
MOST_LOOKS = 100  # at a candidate while it trains, where the best epoch counts


@dataclass(frozen=True)
class FineTune(Protocol):
    """A small grid of learning rates, each trained to its end; validation chooses, without choosing epochs.

    The recipe is what the fine-tunings of BEiT, MAE and those after them share: AdamW, half a cosine after a
    warm-up, layer-wise decay of the rate, drop path, RandAugment, random erasing, mixup and cutmix with
    smoothed labels; all by timm's own pieces. Published rates differ by a factor of eight between methods,
    as much as recipes make methods differ (iBOT's table 11), so that the rate is chosen for each; the other
    settings hardly interact with the method.

    The last epoch counts, not the best one: with the rate gone to zero the two differ by noise, which a
    maximum over epochs would turn into gain. So the figure for validation is the best of as many as there
    are rates, and three of them cost what one published fine-tuning of a ViT-B costs, a hundred epochs.

    The set decides how long that takes: ``epochs``, and where these are fewer than ``min_steps`` updates a
    smaller batch (the rate along with it), then more epochs.
    """

    key = "finetune"
    version = 1
    summary = (
        "the whole encoder is trained with a linear head, as by BEiT and MAE; learning rate by validation"
    )
    presets = RECIPES
    takes_answers = True

    epochs: _Positive = 30
    min_steps: Annotated[int, Field(gt=0)] = 1000
    batch_size: Annotated[int, Field(gt=0)] = 256
    lr: Annotated[tuple[_Positive, ...], Field(min_length=1)] = (3e-4, 1e-3, 3e-3)
    lr_rule: Literal["per_256", "per_512", "absolute"] = "per_256"  # absolute: at batch_size
    layer_decay: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1)] = (0.75,)
    weight_decay: _NotNegative = 0.05
    warmup: _Share = 0.1  # share of the run
    min_lr: _NotNegative = 1e-6  # at batch_size
    clip_grad: _Positive | None = None
    drop_path: _Share = 0.1
    # "card": what the method's authors read off their encoder. A mean gets a new layer norm, as in MAE's
    # code; a class token goes through the encoder's own.
    token: Literal["card", "cls", "mean", "cls+mean"] = "card"
    head_std: _Positive = 2e-5  # of the head's first weights: MAE's, and BEiT's 0.02 times its scale of 0.001
    # timm's notation. With it timm, and so every official code, leaves out the colour jitter it is asked for.
    rand_augment: Annotated[
        str, Field(pattern=r"^(rand(-(m|n|mmax|inc)[0-9]+|-(mstd|p)[0-9]+(\.[0-9]+)?)*)?$")
    ] = "rand-m9-mstd0.5-inc1"
    erasing: _Probability = 0.25
    mixup: _NotNegative = 0.8
    cutmix: _NotNegative = 1.0
    mix_probability: _Probability = 1.0
    switch: _Probability = 0.5  # that a mixed batch is mixed by cutmix
    smoothing: _Share = 0.1
    ema: _Share | None = None  # decay of a moving average of the weights, which is then what is evaluated
    epoch: Literal["last", "best"] = "last"
    choose_on: ChooseOn = "validation"

    @property
    def collective(self) -> bool:
        """Every process trains."""
        return True

    def evaluate(self, encoder: Encoder, data: Dataset, around: Surroundings) -> Evaluation:
        """Top-1 (and top-5 above five classes) of the candidate that validation chose."""
        self.check(data)
        assert data.classes is not None
        with ExitStack() as stack:
            folder = around.folder or Path(stack.enter_context(TemporaryDirectory()))
            search = self.search(encoder, data, around, folder)
            selection, (ranks, _) = select_and_test(
                data,
                search.candidates,
                search.scores,
                lambda chosen, split: search.viewing.judge(search.classifier(), split),
                axes={"lr": (0, math.inf), "layer_decay": (0, 1)},
                notes=search.plan.notes,
                choose_on=self.choose_on,
            )
        hits = ranks < 1
        metrics = {"top1": float(hits.mean())}
        if len(data.classes) > 5:
            metrics["top5"] = float((ranks < 5).mean())
        if self.choose_on == "validation":
            metrics["validation_top1"] = selection.score
        return Evaluation(
            metrics, Hits(hits), selection.content(), search.facts(), search.curve(selection.chosen)
        )

    def search(self, encoder: Encoder, data: Dataset, around: Surroundings, folder: Path) -> Search:
        """The fine-tunings that are to be chosen from, none of them done yet.

        For protocols that look at a fine-tuned classifier in their own way: ``Search.scores`` trains,
        ``Search.classifier`` is the best of what was trained, ``Search.viewing`` shows it images.
        """
        assert data.classes is not None
        fabric = around.fabric or make_fabric("fp32", encoder.mean.device.type)
        token, notes = self._token(encoder, around)
        mean, std = (value.flatten().tolist() for value in (encoder.mean, encoder.std))
        plan = self._plan(data, notes)
        how = Regularisation(
            self.mixup, self.cutmix, self.mix_probability, self.switch, self.smoothing, self.erasing
        )

        def build(candidate: Mapping[str, Any]) -> FineTuning:
            classifier = Classifier(
                encoder.backbone.rebuilt(drop_path=self.drop_path).cpu(),
                len(data.classes or ()),
                token=token,
                head_std=self.head_std,
                mean=mean,
                std=std,
            )
            return FineTuning(classifier, how, layer_decay=candidate["layer_decay"], average=self.ema)

        # timm fills with the mean colour what its transforms move away.
        red, green, blue = (min(255, round(255 * value)) for value in mean)
        augmentation = Augmentation(
            crop_scale=(0.08, 1.0), rand_augment=self.rand_augment, fill=(red, green, blue)
        )
        return Search(
            build,
            [{"lr": lr, "layer_decay": decay} for lr, decay in product(self.lr, self.layer_decay)],
            partial(self._recipe, augmentation),
            plan,
            data=data,
            image_size=encoder.image_size,
            identity={
                "weights": weights_sha256(encoder),
                "fields": {field.name: getattr(self, field.name) for field in fields(self)},
                "token": token,
            },
            viewing=Viewing(fabric, data.defaults.crop_pct, around.workers, report=around.report),
            around=around,
            folder=folder,
        )

    def _recipe(self, augmentation: Augmentation, candidate: Mapping[str, Any]) -> Recipe:
        return Recipe(
            base_lr=candidate["lr"],
            lr_rule=self.lr_rule,
            batch_size=self.batch_size,
            betas=(0.9, 0.999),
            weight_decay=self.weight_decay,
            warmup=self.warmup,
            min_lr=self.min_lr,
            clip_grad=self.clip_grad,
            augmentation=augmentation,
            source="finetune",
        )

    def _plan(self, data: Dataset, notes: list[str]) -> Plan:
        """How long a candidate trains on ``data``, and when it is looked at."""
        count, batch = len(data.train), self.batch_size
        wanted = self.epochs * count / self.min_steps  # images a step
        if wanted < batch and batch > SMALLEST_BATCH:
            batch = min(batch, 2 ** int(math.log2(max(wanted, SMALLEST_BATCH))))
            notes = [*notes, f"batches of {batch}: {self.batch_size} would leave few steps on {count} images"]
        steps = max(self.min_steps, round(self.epochs * count / batch))
        looks = 1 if self.epoch == "last" else max(1, min(MOST_LOOKS, round(steps * batch / count)))
        return Plan(steps, batch, tuple((i + 1) / looks for i in range(looks)), tuple(notes))

    def _token(self, encoder: Encoder, around: Surroundings) -> tuple[str, list[str]]:
        """What the head gets of this encoder, and what is to be noted on it."""
        if self.token != "card":
            if "cls" in self.token and not encoder.has_cls:
                raise UserError(
                    f"finetune.token={self.token} asks for the class token, which this backbone does not "
                    "have; use mean"
                )
            return self.token, []
        if "cls" in around.readout.token and not encoder.has_cls:
            return "mean", ["the head is on the mean of the patches: the backbone has no class token"]
        return around.readout.token, []
