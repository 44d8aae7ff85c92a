"""Segmentation by k nearest patches: no training, no optimiser."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mimbench.outcomes import Overlaps
from mimbench.protocol import Evaluation, Preset, Protocol, Surroundings
from mimbench.selection import Scores, select_and_test
from protocols.parts.frozen import Standard, layers_at, standard
from protocols.parts.neighbours import nearest, unit
from protocols.parts.patch_bank import Bank, bank_of
from protocols.parts.patches import Fit, Seen, figures, pixel_maps, predicted, score, see

if TYPE_CHECKING:
    from mimbench.data import Dataset, Split
    from mimbench.encoder import Encoder

Distance = Literal["cosine", "l2"]
_Count = Annotated[int, Field(gt=0)]
_Share = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True)
class SegKNN(Protocol):
    """Each patch takes over the labels of the patches of train that it resembles most.

    As CAPI (Darcet et al., 2025, arXiv:2502.08769, eval_segmentation.py): patch tokens through the final
    norm, every feature standardised by the statistics of train; the values of a neighbour are the P x P
    labels of its patch, so that a prediction is finer than a patch; neighbours' votes are equal; patches of
    train without a class on most of their pixels are left out. Here the search is in float32, a neighbour
    says nothing where its pixels are not annotated (a patch whose neighbours all say nothing at a pixel takes
    there what they say elsewhere), and the votes' shares go bilinearly to the annotation's own resolution, at
    which mean IoU is taken.
    """

    key = "segknn"
    version = 1
    task = "segmentation"
    metric = "miou"
    summary = "label patches of the nearest training patches; k, distance and layer by validation"
    presets = {
        "capi": Preset(
            {"layers": (1.0,), "max_patches": None},
            source=(
                "facebookresearch/capi eval_segmentation.py: k in 1, 3, 10, 30, cosine and L2; there scored "
                "at 224 pixels, here at the annotation's resolution"
            ),
        ),
    }

    # One number fixes it; of a list validation chooses.
    k: _Count | Annotated[tuple[_Count, ...], Field(min_length=1)] = (1, 3, 10, 30)
    distances: Annotated[tuple[Distance, ...], Field(min_length=1)] = ("cosine", "l2")
    # Shares of the depth. BEiT's features are best at 3/4 of it (microsoft/unilm, issue 419).
    layers: Annotated[tuple[_Share, ...], Field(min_length=1)] = (1.0, 0.75)
    fit: Fit = "squash"
    image_size: _Count | None = None  # of the encoder's input; None: as it was pre-trained
    # Of train, drawn at random where there are more; 2 layers of ViT-B take 3 GB. None: all of them.
    max_patches: _Count | None = 500_000

    @property
    def collective(self) -> bool:
        return True

    def evaluate(self, encoder: Encoder, data: Dataset, around: Surroundings) -> Evaluation:
        """Mean IoU of the combination that validation chose."""
        self.check(data)
        assert data.classes is not None
        classes = len(data.classes)
        encoder = encoder.resized(self.image_size or encoder.image_size)
        layers, notes = layers_at(self.layers, encoder.depth)
        blocks = list(layers.values())
        bank = bank_of(encoder, data.train, blocks, self.fit, around, classes=classes, limit=self.max_patches)
        count = len(bank.labels)
        if count < bank.total:
            notes.append(f"{count} of {bank.total} training patches, drawn at random")
        given = [self.k] if isinstance(self.k, int) else sorted(set(self.k))
        ks = [k for k in given if k <= count] or [count]
        if ks != given:
            notes.append(f"k above {count} left out: there are no more training patches")
        searches = {
            (share, distance): _Search(bank.tokens[layer], layer, distance)
            for (share, layer), distance in product(layers.items(), dict.fromkeys(self.distances))
        }
        grid, side = encoder.backbone.grid, encoder.image_size

        samples: dict[str, np.ndarray] = {}

        def overlaps(
            split: Split,
            wanted: Sequence[_Search],
            ks: Sequence[int],
            kept: dict[str, np.ndarray] | None = None,
        ) -> list[Overlaps]:
            def predictions(image: Seen) -> Iterator[np.ndarray]:
                for search in wanted:
                    index = search.find(image.tokens[search.layer].flatten(0, 1), ks[-1])
                    for k in ks:
                        votes = shares(index[:, :k], bank, classes).unflatten(0, (len(image.labels), -1))
                        yield predicted(pixel_maps(votes, grid, side), image.canvas, image.target.shape)

            used = list(dict.fromkeys(search.layer for search in wanted))
            seen = see(encoder, split, used, self.fit, around, stage=f"neighbours of {split.name} patches")
            return score(seen, predictions, classes, len(split), around.fabric, kept)

        def validate(split: Split) -> Scores:
            return Scores([found.score for found in overlaps(split, list(searches.values()), ks)])

        def test(chosen: int, split: Split) -> Overlaps:
            search = list(searches.values())[chosen // len(ks)]
            return overlaps(split, [search], [ks[chosen % len(ks)]], samples)[0]

        selection, found = select_and_test(
            data,
            [
                {"layer": share, "distance": distance, "k": k}
                for (share, distance), k in product(searches, ks)
            ],
            validate,
            test,
            axes={"k": (1, count)},
            notes=notes,
            metric=self.metric,
        )
        metrics = {**figures(found), "validation_miou": selection.score}
        return Evaluation(metrics, found, selection.content(), {"patches": count}, samples=samples)


class _Search:
    """Nearest neighbours among standardised tokens [N, D] of a layer."""

    def __init__(self, tokens: Tensor, layer: int, distance: Distance):
        self.layer, self.distance = layer, distance
        self._standard: Standard = standard(tokens)
        keys = self._standard(tokens)
        if distance == "cosine":
            self._keys = unit(keys)
        else:
            # |q - b|² is |q|² - 2 (q·b - |b|² / 2): the nearest has the highest of the bracket, which is
            # the product with one more feature.
            self._keys = torch.cat([keys, -keys.square().sum(1, keepdim=True) / 2], 1)

    def queries(self, tokens: Tensor) -> Tensor:
        """Tokens [M, D] as the search takes them."""
        queries = self._standard(tokens)
        if self.distance == "cosine":
            return unit(queries)
        return torch.cat([queries, torch.ones_like(queries[:, :1])], 1)

    def find(self, tokens: Tensor, k: int) -> Tensor:
        """The k nearest of patches with ``tokens`` [M, D], nearest first: int64 [M, k]."""
        return torch.cat([found.index for _, found in nearest(self.queries(tokens), self._keys, k)])


def shares(index: Tensor, bank: Bank, classes: int) -> Tensor:
    """Shares of the neighbours' votes, [M, classes, P·P]. index: of the neighbours, [M, k]."""
    said = bank.labels[index.reshape(-1)].long().view(*index.shape, -1)
    said[said == bank.ignore] = classes
    votes = torch.zeros(len(index), classes + 1, said.shape[2], device=index.device)
    votes.scatter_add_(1, said, torch.ones_like(said, dtype=votes.dtype))
    votes = votes[:, :classes]
    here, anywhere = votes.sum(1, keepdim=True), votes.sum(2, keepdim=True)
    # the patches of a bank all have an annotated pixel somewhere
    return torch.where(here > 0, votes / here.clamp(min=1), anywhere / anywhere.sum(1, keepdim=True))
