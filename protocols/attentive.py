"""Attentive probing: pooling by attention over frozen tokens, and a linear layer behind it."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import asdict, dataclass
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from pydantic import Field

from mimbench.errors import UserError
from mimbench.features import weights_sha256
from mimbench.outcomes import Hits
from mimbench.protocol import ChooseOn, Evaluation, Protocol, Surroundings
from mimbench.selection import Scores, select_and_test
from mimbench.spec import content_hash
from protocols.parts.answers import admitted, answers_of
from protocols.parts.attentive_heads import AttentiveHeads, Candidate, Group
from protocols.parts.attentive_recipes import RECIPES
from protocols.parts.batches import Augment
from protocols.parts.course import Course, Trials, lay_out
from protocols.parts.fitted import ranks_of
from protocols.parts.frozen import layer_at
from protocols.parts.optimisers import OptimizerName
from protocols.parts.pooling import Pooling
from protocols.parts.processes import Team
from protocols.parts.tokens import Attended, Pieces, TokenSource

if TYPE_CHECKING:
    from mimbench.data import Dataset, Split
    from mimbench.encoder import Encoder

_Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class AttentiveProbe(Protocol):
    """Every combination of pooling, layer, weight decay and learning rate is trained at once.

    A linear probe reads one vector, and which one suits differs between methods; here a query learns which
    patches to look at. AdamW, half a cosine to zero, no weight decay on biases and norms, as in CAPI and
    V-JEPA; learning rates are per 256 samples. Tokens went through the final norm. By default those of
    untouched images, read once and kept in memory where they fit; validation chooses.
    """

    key = "attentive"
    version = 1
    summary = (
        "attention pooling on frozen tokens; pooling, layer, weight decay and learning rate by validation"
    )
    presets = RECIPES
    takes_answers = True

    # V-JEPA trains for 20 passes over ImageNet, CAPI for 12500 updates; small sets get min_steps.
    epochs: Annotated[float, Field(gt=0)] = 20
    min_steps: Annotated[int, Field(gt=0)] = 1000
    batch_size: Annotated[int, Field(gt=0)] = 256
    pooling: Annotated[tuple[Pooling, ...], Field(min_length=1)] = ("capi", "vjepa")
    layers: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1)] = (1.0, 0.75)
    lr: Annotated[tuple[_Positive, ...], Field(min_length=1)] = (0.001, 0.003, 0.01, 0.03, 0.1)
    weight_decay: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1)] = (0.05,)
    tokens: Attended = "patches"  # "all": the class token too, where there is one like the patches'
    optimizer: OptimizerName = "adamw"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # of SGD and LARS; AdamW's first beta
    beta2: Annotated[float, Field(gt=0, lt=1)] = 0.95  # AdamW's
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1  # share of the course with a rising rate
    clip_grad: Annotated[float, Field(ge=0)] = 0.0  # of each candidate's gradient norm; 0: none
    augment: Augment = "none"  # "crop": random resized crops and flips, anew in each epoch
    checkpoints: Annotated[int, Field(gt=0)] = 1  # states of each that are candidates, evenly spaced
    choose_on: ChooseOn = "validation"

    @property
    def collective(self) -> bool:
        """The encoder is run throughout, on all processes."""
        return True

    def evaluate(self, encoder: Encoder, data: Dataset, around: Surroundings) -> Evaluation:
        """Top-1 (and top-5 above five classes) of the candidate that was chosen."""
        self.check(data)
        assert data.classes is not None
        training = _Training(self, encoder, data, around)
        selection, ranks = select_and_test(
            data,
            training.trials(),
            training.scores_on,
            training.ranks_of,
            axes={"lr": (0, math.inf)},
            notes=training.notes,
            choose_on=self.choose_on,
        )
        hits = ranks < 1
        metrics = {"top1": float(hits.mean())}
        if len(data.classes) > 5:
            metrics["top5"] = float((ranks < 5).mean())
        if self.choose_on == "validation":
            metrics["validation_top1"] = selection.score
        return Evaluation(metrics, Hits(hits), selection.content())


class _Training:
    """The candidates of one evaluation, their data and what came of them."""

    def __init__(self, probe: AttentiveProbe, encoder: Encoder, data: Dataset, around: Surroundings):
        assert data.classes is not None
        self.probe, self.encoder, self.data, self.around = probe, encoder, data, around
        self.team = Team(around.fabric, encoder, together=True)
        self.course = self._course(len(data.train))
        self.notes: list[str] = []
        if self.course.batch_size < probe.batch_size:
            self.notes.append(
                f"batches of {self.course.batch_size} instead of {probe.batch_size}, which would leave fewer "
                f"than {probe.min_steps} updates on {len(data.train)} training images; rates are as they were"
            )
        if self.course.batch_size % self.team.world:
            raise UserError(
                f"a batch of {self.course.batch_size} cannot be shared evenly by {self.team.world} "
                f"processes; use a multiple of {self.team.world}"
            )
        self.blocks = self._blocks()
        self.grid = list(product(probe.pooling, self.blocks, probe.weight_decay, probe.lr))
        self.source = TokenSource(encoder, data, around, self.team, list(self.blocks.values()), probe.tokens)
        scale = probe.batch_size / 256  # of the recipe's own batch, see lay_out
        self.heads = AttentiveHeads(
            [
                Candidate(pooling, self.blocks[share], lr * scale, decay)
                for pooling, share, decay, lr in self.grid
            ],
            self.source.shape[1],
            len(data.classes),
            self.team,
            seed=around.seed,
            optimizer=probe.optimizer,
            momentum=probe.momentum,
            beta2=probe.beta2,
            clip=probe.clip_grad,
        )

    def _course(self, count: int) -> Course:
        probe = self.probe
        return lay_out(
            count,
            epochs=probe.epochs,
            min_steps=probe.min_steps,
            batch_size=probe.batch_size,
            warmup=probe.warmup,
            checkpoints=probe.checkpoints,
        )

    def _blocks(self) -> dict[float, int]:
        """The different blocks, counted from the end, by the share of the depth that was asked for."""
        found: dict[float, int] = {}
        for share in self.probe.layers:
            layer = layer_at(share, self.encoder.depth)
            if layer in found.values():
                self.notes.append(
                    f"layer {share:g} left out: at a depth of {self.encoder.depth} another one equals it"
                )
            else:
                found[share] = layer
        return found

    def trials(self) -> list[dict[str, Any]]:
        """Every candidate at every mark, as JSON data."""
        found = []
        for mark, (pooling, share, decay, lr) in product(self.course.marks, self.grid):
            trial = {"pooling": pooling, "layer": share, "lr": lr, "weight_decay": decay}
            if self.probe.checkpoints > 1:
                trial["epochs"] = round(mark * self.course.batch_size / len(self.data.train), 2)
            found.append(trial)
        return found

    def scores_on(self, split: Split) -> Scores:
        """Train all candidates; how each does on ``split`` at each mark."""
        folder = self.around.folder
        trials: Trials[Pieces] = Trials(
            self.course,
            learn=lambda pieces, factor: self.heads.learn(pieces, self.course.batch_size, factor),
            score=lambda: Scores(*self.heads.score(self.source.labelled(split), len(split))),
            keep=self.heads.keep,
            state=self.heads.state_dict,
            restore=self.heads.load_state_dict,
            identity=self._identity(split),
            team=self.team,
            report=self.around.report,
            path=folder / "attentive.pt" if folder else None,
        )
        scores = trials.run(self._batches)
        self.best, self.kept = trials.best, trials.kept
        return scores

    def _batches(self, first: int, last: int) -> Generator[Pieces, None, None]:
        return self.source.to_train_on(self.probe.augment, self.course, first, last, self.heads.normed)

    @torch.no_grad()
    def ranks_of(self, chosen: int, split: Split) -> np.ndarray:
        """The place of the true class in the order of the chosen candidate, 0 the first, int64 [N]."""
        assert chosen == self.best, "what was kept is what is chosen"
        group = Group.unpacked(self.kept, self.team.computing)
        ranks = torch.zeros(len(split), dtype=torch.int64, device=self.team.computing)
        assert split.labels is not None
        for indices, tokens in self.source.in_order(split):
            labels = torch.from_numpy(np.asarray(split.labels[indices], np.int64)).to(self.team.computing)
            rows = torch.from_numpy(indices).to(self.team.computing)
            logits = group.logits(tokens[group.layer])[0]
            ranks[rows] = ranks_of(*admitted(answers_of(split), logits, labels, indices))
        if not self.team.alone:
            self.team.sum_(ranks)  # others hold zeros where this process has ranks
        return ranks.cpu().numpy()

    def _identity(self, split: Split) -> str:
        return content_hash(
            {
                "protocol": [self.probe.key, self.probe.version],
                "fields": asdict(self.probe),
                "encoder": weights_sha256(self.encoder),
                "train": self.data.train.fingerprint,
                "scored": split.fingerprint,
                "seed": self.around.seed,
            }
        )
