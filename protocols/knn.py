"""k-NN classification with frozen features: no training, no optimiser, nothing to tune but three choices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mimbench.errors import UserError
from mimbench.outcomes import Hits
from mimbench.progress import Progress
from mimbench.protocol import Evaluation, Preset, Protocol, Surroundings
from mimbench.selection import Scores, select_and_test
from protocols.parts.answers import Answers, answers_of
from protocols.parts.frozen import labels_of, read
from protocols.parts.neighbours import nearest, vote
from protocols.parts.normalised import Normalisation, Token, normalised, variants

if TYPE_CHECKING:
    from mimbench.data import Dataset, Split
    from mimbench.encoder import Encoder

_Count = Annotated[int, Field(gt=0)]


@dataclass(frozen=True)
class KNN(Protocol):
    """Cosine similarity, votes weighted by exp(similarity / temperature); validation chooses the rest.

    The three normalisations in use differ by 35 points for one and the same MAE (ViT-B: 16 after the final
    norm, 36 as the last block left it, 51 standardised by the statistics of train, as in MAE-CT), so that
    none of them can be the definition for all methods.
    """

    key = "knn"
    version = 1
    summary = "weighted vote of the nearest training images; k, token and normalisation by validation"
    takes_answers = True
    presets = {
        "dino": Preset(
            {"k": 20, "normalisations": ("final",), "tokens": ("output",)},
            source="facebookresearch/dino eval_knn.py; of its k = 10, 20, 100 and 200 the one that is quoted",
        ),
        "dinov2": Preset(
            {"k": (10, 20, 100, 200), "normalisations": ("final",), "tokens": ("output",)},
            source=(
                "facebookresearch/dinov2 dinov2/eval/knn.py, whose softmax of the similarities is this vote; "
                "it prints all four k, of which validation chooses here"
            ),
        ),
        "mae-ct": Preset(
            {"k": 10, "normalisations": ("standardised",), "tokens": ("output",)},
            source="MAE-CT (arXiv:2304.10520) and ml-jku/MIM-Refiner: no final norm, features standardised",
        ),
        "lightly": Preset(
            {"k": 200, "normalisations": ("final",), "tokens": ("output",)},
            source="lightly-ai/lightly benchmarks/imagenet, which resizes bilinearly; bicubically here",
        ),
    }

    # One number fixes it; of a list validation chooses, and what exceeds the size of train falls away.
    k: _Count | Annotated[tuple[_Count, ...], Field(min_length=1)] = (1, 5, 10, 20, 50, 100, 200)
    temperature: Annotated[float, Field(gt=0)] = 0.07  # DINO's, arXiv:2104.14294
    normalisations: Annotated[tuple[Normalisation, ...], Field(min_length=1)] = (
        "standardised",
        "raw",
        "final",
    )
    tokens: Annotated[tuple[Token, ...], Field(min_length=1)] = ("cls", "mean")

    def check(self, data: Dataset) -> None:
        """Raise UserError for data without labels or with fewer training images than neighbours."""
        super().check(data)
        smallest = self.k if isinstance(self.k, int) else min(self.k)
        if smallest > len(data.train):
            raise UserError(
                f"knn.k={smallest} asks for more neighbours than the {len(data.train)} training images of "
                f"{data.name}; use a smaller k"
            )

    def evaluate(self, encoder: Encoder, data: Dataset, around: Surroundings) -> Evaluation:
        """Top-1 of the combination that validation chose."""
        self.check(data)
        assert data.classes is not None
        tried, notes = variants(self.tokens, self.normalisations, encoder, self.key)
        ks, more = self._ks(len(data.train))
        readouts = list(dict.fromkeys(variant.readout for variant in tried))
        features = partial(read, encoder, data, around, readouts)
        train, bank_labels = features(data.train), labels_of(data.train, encoder)
        votes = partial(class_votes, classes=len(data.classes), temperature=self.temperature)

        def validate(split: Split) -> Scores:
            queries, labels = features(split), labels_of(split, encoder)
            accuracy: list[float] = []
            loss: list[float] = []
            for done, variant in enumerate(tried):
                around.report(Progress(stage="finding neighbours", done=done / len(tried)))
                bank, asked = normalised(variant, train, queries)
                hits, shares = votes(bank, asked, bank_labels, labels, ks=ks)
                accuracy += hits.double().mean(1).tolist()
                loss += (1 - shares).mean(1).tolist()
            return Scores(accuracy, loss)

        def test(chosen: int, split: Split) -> np.ndarray:
            variant, k = tried[chosen // len(ks)], ks[chosen % len(ks)]
            queries, labels = features(split), labels_of(split, encoder)
            bank, asked = normalised(variant, train, queries)
            hits, _ = votes(bank, asked, bank_labels, labels, ks=[k], answers=answers_of(split))
            return hits[0].cpu().numpy()

        selection, hits = select_and_test(
            data,
            [{**variant.content(), "k": k} for variant, k in product(tried, ks)],
            validate,
            test,
            axes={"k": (1, len(data.train))},
            notes=notes + more,
        )
        metrics = {"top1": float(hits.mean()), "validation_top1": selection.score}
        return Evaluation(metrics, Hits(hits), selection.content())

    def _ks(self, count: int) -> tuple[list[int], list[str]]:
        """Numbers of neighbours that ``count`` training images allow, and what was left out."""
        given = [self.k] if isinstance(self.k, int) else sorted(set(self.k))
        ks = [k for k in given if k <= count]
        if len(ks) == len(given):
            return ks, []
        beyond = ", ".join(str(k) for k in given[len(ks) :])
        return ks, [f"k = {beyond} left out: there are {count} training images"]


def class_votes(
    bank: Tensor,
    queries: Tensor,
    bank_labels: Tensor,
    labels: Tensor,
    *,
    classes: int,
    ks: Sequence[int],
    temperature: float,
    answers: Answers | None = None,
) -> tuple[Tensor, Tensor]:
    """For each k and query [ks, M]: whether the vote is right, and its share for the true class.

    bank: [N, D], queries: [M, D], both of unit rows. answers: of the queries, see
    ``protocols.parts.answers``; shares are those of all votes.
    """
    hits = torch.empty(len(ks), len(labels), dtype=torch.bool, device=labels.device)
    shares = torch.empty(len(ks), len(labels), dtype=torch.float64, device=labels.device)
    for rows, found in nearest(queries, bank, ks[-1]):
        allowed = None if answers is None else answers.allowed_for(rows, labels.device)
        said = vote(found, bank_labels, labels[rows], classes, ks, temperature, allowed)
        shares[:, rows] = said.share
        if answers is None:
            hits[:, rows] = said.prediction == labels[rows]
        else:
            hits[:, rows] = answers.right_for(rows, labels.device).gather(1, said.prediction.T).T
    return hits, shares
