"""Image retrieval with frozen features: every test image asks for the others of its class."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
from pydantic import Field

from mimbench.errors import UserError
from mimbench.outcomes import Values
from mimbench.progress import Progress
from mimbench.protocol import Evaluation, EvaluationFailed, Protocol, Surroundings
from mimbench.selection import Scores, select_and_test
from protocols.parts.frozen import labels_of, read
from protocols.parts.normalised import Normalisation, Token, Variant, normalised, variants
from protocols.parts.ranking import Ranked, rank

if TYPE_CHECKING:
    from mimbench.data import Dataset, Split
    from mimbench.encoder import Encoder

RECALL_AT = (1, 5, 10)
# Validation images that ask, of all that are found: enough to tell six variants apart within half a point.
QUERIES = 5000


@dataclass(frozen=True)
class Retrieval(Protocol):
    """Mean average precision and recall@k within the test split, by cosine similarity.

    Every test image asks, every other test image can be found, and the relevant ones are those of its
    class; train gives no more than the statistics of the standardised variant. recall@k is the share of
    images with one of their class among the k nearest, as in metric learning (arXiv:1511.06452).

    An image that is the only one of its class finds nothing, which counts as 0; how many those are is
    recorded. Validation chooses token and normalisation by the mean average precision within itself.
    """

    key = "retrieval"
    version = 1
    metric = "mAP"
    summary = "each test image ranks the others by cosine similarity; token and normalisation by validation"

    normalisations: Annotated[tuple[Normalisation, ...], Field(min_length=1)] = (
        "standardised",
        "raw",
        "final",
    )
    tokens: Annotated[tuple[Token, ...], Field(min_length=1)] = ("cls", "mean")

    def check(self, data: Dataset) -> None:
        """Raise UserError for data without labels or without two validation images of a class."""
        super().check(data)
        assert data.validation.labels is not None
        if np.bincount(data.validation.labels).max(initial=0) < 2:
            raise UserError(
                f"{self.key} needs two validation images of a class to choose by, and {data.name} has no "
                "class with more than one; give more images"
            )

    def evaluate(self, encoder: Encoder, data: Dataset, around: Surroundings) -> Evaluation:
        """mAP of the variant that validation chose."""
        self.check(data)
        tried, notes = variants(self.tokens, self.normalisations, encoder, self.key)
        features = partial(read, encoder, data, around, list(dict.fromkeys(v.readout for v in tried)))
        train = features(data.train)

        def ranked(variant: Variant, split: Split, most: int | None = None) -> Ranked:
            _, asked = normalised(variant, train, features(split))
            step = 1 if most is None else -(-len(asked) // most)
            queries = torch.arange(0, len(asked), step, device=asked.device)
            ks = [min(k, len(asked) - 1) for k in RECALL_AT]
            return rank(asked, labels_of(split, encoder), queries, ks)

        def validate(split: Split) -> Scores:
            scores = []
            for done, variant in enumerate(tried):
                around.report(Progress(stage="ranking images", done=done / len(tried)))
                of = ranked(variant, split, QUERIES)
                scores.append(float(of.average_precision[of.findable].mean()))
            return Scores(scores)

        def test(chosen: int, split: Split) -> Ranked:
            return ranked(tried[chosen], split)

        candidates = [variant.content() for variant in tried]
        selection, of = select_and_test(data, candidates, validate, test, notes=notes, metric=self.metric)
        if not of.findable.any():
            raise EvaluationFailed(f"no two test images of {data.name} are of one class: nothing to retrieve")
        precision = of.average_precision.cpu().numpy()
        metrics = {"mAP": float(precision.mean())}
        metrics |= {
            f"recall{k}": float(hit.double().mean()) for k, hit in zip(RECALL_AT, of.found, strict=True)
        }
        metrics["validation_mAP"] = selection.score
        alone = int((~of.findable).sum())
        return Evaluation(metrics, Values(precision), selection.content(), facts={"alone_in_class": alone})
