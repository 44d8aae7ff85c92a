"""Zero-shot classification: class names through CLIP's text tower, no labels at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial, reduce
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
from pydantic import AfterValidator
from torch import Tensor
from torch.nn import functional as F

from mimbench.errors import UserError
from mimbench.outcomes import Hits
from mimbench.progress import Progress
from mimbench.protocol import Evaluation, Protocol, Surroundings
from mimbench.selection import Scores, select_and_test
from mimbench.spec import Readout
from protocols.parts.answers import admitted, answers_of
from protocols.parts.clip_text import CLIP, Templates, class_names, pinned
from protocols.parts.fitted import ranks_of
from protocols.parts.frozen import labels_of, read
from protocols.parts.neighbours import unit

if TYPE_CHECKING:
    from mimbench.data import Dataset, Split
    from mimbench.encoder import Encoder, Linear

BLOCK = 2**14  # images whose logits are held at once


@dataclass(frozen=True)
class ZeroShot(Protocol):
    """For encoders whose tokens lie in the space of a CLIP model: the nearest class prompt, by cosine.

    An image's vector is the encoder's class token after its final norm (the mean of the patches where it has
    none); through the layer by which the method was aligned with its teacher, where it has one (UTA,
    arXiv:2405.19009); through the projection that ends the CLIP model's own image tower, if its width is
    that of the encoder. So the CLIP model must be the one the encoder came from or was taught by: of any
    other, the figure is chance.

    Nothing is chosen. The accuracy on validation stands in the record for comparison.
    """

    key = "zeroshot"
    version = 1
    summary = "the nearest class name in CLIP's space, for encoders aligned with it; uses no labels"
    requires = (("open_clip",), "clip")
    takes_answers = True

    # A CLIP model as open_clip has it: MODEL@FILE, MODEL@TAG, local-dir:FOLDER or hf-hub:NAME
    clip: Annotated[str, AfterValidator(pinned)] = ""
    # "openai": the mean over CLIP's 80 prompts (arXiv:2103.00020); "simple": over the 7 its authors found
    # best; "name": the class name alone
    templates: Templates = "openai"
    token: Literal["output", "mean"] = "output"
    # "clip": through the projection of the CLIP model's image tower; "none": the encoder has it already
    projection: Literal["clip", "none"] = "clip"

    def check(self, data: Dataset) -> None:
        """Raise UserError for data without labels and without a text tower's weights."""
        super().check(data)
        assert data.classes is not None
        if not self.clip:
            raise UserError(
                "zeroshot needs the CLIP model that the encoder is aligned with; name its weights, as in "
                "--set zeroshot.clip=ViT-B-16@PATH"
            )
        class_names(data.classes)

    def evaluate(self, encoder: Encoder, data: Dataset, around: Surroundings) -> Evaluation:
        """Top-1 (and top-5 above five classes) of the nearest prompt."""
        self.check(data)
        assert data.classes is not None
        token: Literal["cls", "mean"] = "cls" if encoder.has_cls and self.token == "output" else "mean"
        readout = Readout(token=token)
        clip = CLIP(self.clip)
        names = class_names(data.classes)
        features = partial(read, encoder, data, around, [readout])
        found = features(data.validation)[readout]
        space = self._space(clip, found, around.alignment())
        around.report(Progress(stage="embedding class names", done=0.0))
        prompts = clip.class_embeddings(names, self.templates, found.device)

        def judged(split: Split) -> Iterator[tuple[Tensor, Tensor]]:
            """Logits and labels, block by block."""
            labels = labels_of(split, encoder).split(BLOCK)
            for block, own in zip(features(split)[readout].split(BLOCK), labels, strict=True):
                yield clip.scale * unit(space(block)) @ prompts.T, own

        def validate(split: Split) -> Scores:
            right, loss = 0, 0.0
            for logits, labels in judged(split):
                right += int((logits.argmax(1) == labels).sum())
                loss += float(F.cross_entropy(logits, labels, reduction="sum"))
            return Scores([right / len(split)], [loss / len(split)])

        def test(_: int, split: Split) -> np.ndarray:
            found, first, answers = [], 0, answers_of(split)
            for logits, labels in judged(split):
                rows = slice(first, first + len(labels))
                found.append(ranks_of(*admitted(answers, logits, labels, rows)))
                first = rows.stop
            return torch.cat(found).cpu().numpy()

        candidate = {"token": token, "templates": self.templates}
        selection, places = select_and_test(data, [candidate], validate, test)
        hits = places < 1
        metrics = {"top1": float(hits.mean())}
        if len(names) > 5:
            metrics["top5"] = float((places < 5).mean())
        metrics["validation_top1"] = selection.score
        return Evaluation(metrics, Hits(hits), selection.content(), facts={"class_names": names})

    def _space(self, clip: CLIP, features: Tensor, alignment: Linear | None) -> Callable[[Tensor], Tensor]:
        """What takes the encoder's features to the space of the prompts. Raises UserError if nothing does."""
        steps, width = [], features.shape[1]
        if alignment is not None:
            steps.append(alignment)
            width = len(alignment.weight)
        if self.projection == "clip":
            projection = clip.projection()
            if projection is None:
                raise UserError(
                    f"the image tower of {self.clip} does not end in a linear projection; use a model whose "
                    "does, or zeroshot.projection=none"
                )
            wanted = projection.weight.shape[1]
            steps.append(projection)
        else:
            wanted = clip.width
        if width != wanted:
            raise UserError(
                f"the encoder gives {width} features and {self.clip} takes {wanted}; name the CLIP "
                "model that this encoder is aligned with"
            )
        moved = [step.to(features.device) for step in steps]
        return lambda block: reduce(lambda x, step: step(x), moved, block)
