"""k-NN classification with frozen features: no training, no optimiser, nothing to tune but three choices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mimbench.errors import UserError
from mimbench.outcomes import Hits
from mimbench.progress import Progress
from mimbench.protocol import Evaluation, Protocol, Surroundings
from mimbench.selection import Scores, select_and_test
from mimbench.spec import Readout
from protocols.parts.frozen import labels_of, read, standard
from protocols.parts.neighbours import nearest, unit, vote

if TYPE_CHECKING:
    from mimbench.data import Dataset, Split
    from mimbench.encoder import Encoder

Normalisation = Literal["standardised", "raw", "final"]
Token = Literal["cls", "mean"]
Variant = tuple[Token, Normalisation]
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
        variants, ks, notes = self._candidates(encoder, len(data.train))
        features = partial(read, encoder, data, around, list(dict.fromkeys(map(_readout, variants))))
        train, bank_labels = features(data.train), labels_of(data.train, encoder)
        votes = partial(class_votes, classes=len(data.classes), temperature=self.temperature)

        def validate(split: Split) -> Scores:
            queries, labels = features(split), labels_of(split, encoder)
            accuracy: list[float] = []
            loss: list[float] = []
            for done, variant in enumerate(variants):
                around.report(Progress(stage="finding neighbours", done=done / len(variants)))
                hits, shares = votes(*_normalised(variant, train, queries), bank_labels, labels, ks=ks)
                accuracy += hits.double().mean(1).tolist()
                loss += (1 - shares).mean(1).tolist()
            return Scores(accuracy, loss)

        def test(chosen: int, split: Split) -> np.ndarray:
            variant, k = variants[chosen // len(ks)], ks[chosen % len(ks)]
            queries, labels = features(split), labels_of(split, encoder)
            hits, _ = votes(*_normalised(variant, train, queries), bank_labels, labels, ks=[k])
            return hits[0].cpu().numpy()

        selection, hits = select_and_test(
            data,
            [{"token": token, "normalisation": norm, "k": k} for (token, norm), k in product(variants, ks)],
            validate,
            test,
            axes={"k": (1, len(data.train))},
            notes=notes,
        )
        metrics = {"top1": float(hits.mean()), "validation_top1": selection.score}
        return Evaluation(metrics, Hits(hits), selection.content())

    def _candidates(self, encoder: Encoder, count: int) -> tuple[list[Variant], list[int], list[str]]:
        """What can be tried with this encoder and ``count`` training images, and what was left out."""
        notes = []
        tokens = [token for token in dict.fromkeys(self.tokens) if token != "cls" or encoder.has_cls]
        if not tokens:
            raise UserError(
                "knn.tokens=[cls] asks for the class token, which this backbone does not have; use mean"
            )
        if len(tokens) < len(set(self.tokens)):
            notes.append("token cls left out: the backbone has no class token")
        given = [self.k] if isinstance(self.k, int) else sorted(set(self.k))
        ks = [k for k in given if k <= count]
        if len(ks) < len(given):
            beyond = ", ".join(str(k) for k in given[len(ks) :])
            notes.append(f"k = {beyond} left out: there are {count} training images")
        return list(product(tokens, dict.fromkeys(self.normalisations))), ks, notes


def _readout(variant: Variant) -> Readout:
    token, normalisation = variant
    return Readout(token=token, norm="final" if normalisation == "final" else "raw")


def _normalised(
    variant: Variant, train: dict[Readout, Tensor], queries: dict[Readout, Tensor]
) -> tuple[Tensor, Tensor]:
    """Bank and queries as the variant compares them, rows of length one."""
    bank, asked = train[_readout(variant)], queries[_readout(variant)]
    if variant[1] == "standardised":
        standardised = standard(bank)
        bank, asked = standardised(bank), standardised(asked)
    return unit(bank), unit(asked)


def class_votes(
    bank: Tensor,
    queries: Tensor,
    bank_labels: Tensor,
    labels: Tensor,
    *,
    classes: int,
    ks: Sequence[int],
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """For each k and query [ks, M]: whether the vote is right, and its share for the true class.

    bank: [N, D], queries: [M, D], both of unit rows.
    """
    hits = torch.empty(len(ks), len(labels), dtype=torch.bool, device=labels.device)
    shares = torch.empty(len(ks), len(labels), dtype=torch.float64, device=labels.device)
    for rows, found in nearest(queries, bank, ks[-1]):
        said = vote(found, bank_labels, labels[rows], classes, ks, temperature)
        hits[:, rows], shares[:, rows] = said.prediction == labels[rows], said.share
    return hits, shares
