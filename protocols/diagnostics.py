"""What can be said of an encoder without labels: collapse, rank, spread, how far it looks, what leaks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from mimbench import rng
from mimbench.data.transforms import EvalTransform, TrainTransform
from mimbench.errors import UserError
from mimbench.geometry import effective_rank, linear_cka
from mimbench.outcomes import Values
from mimbench.progress import Progress
from mimbench.protocol import Evaluation, Protocol, Surroundings, sampled
from mimbench.spec import Augmentation, Readout
from protocols.parts.frozen import read
from protocols.parts.geometry import attention_distance, uniformity

if TYPE_CHECKING:
    from mimbench.data import Dataset, Split
    from mimbench.encoder import Encoder

BATCH = 64
# Below these an encoder is said to have collapsed. Features of masked-image models share one long direction
# and still tell images apart (cosines of 0.99), so the bounds are far below what any sound one shows.
LEAST_VARIANCE = 1e-4
LEAST_RANK_SHARE = 0.02  # of the most that width and number of images allow
LEAK = 1e-3  # relative change of visible tokens that rounding does not explain, in half precision either


@dataclass(frozen=True)
class Diagnostics(Protocol):
    """Not a competition: the numbers say how to read those of the others, and flags say what is wrong.

    Of the features that the method's authors read off (``Readout`` of its card), on the test images:
    variance (the squared distance of features of length one from their mean, which is 1 - mean cosine),
    RankMe of the features and of the centred ones, uniformity. On at most ``images`` of them: alignment of
    two random crops, linear CKA between all layers, attention distance a layer, and whether the content of
    hidden patches reaches the visible tokens.
    """

    key = "diagnostics"
    version = 1
    metric = "variance"
    ranked = False
    summary = "collapse, effective rank, alignment and uniformity, attention distance, CKA of layers, leakage"

    images: Annotated[int, Field(ge=8)] = 512
    crop_min: Annotated[float, Field(gt=0, le=1)] = 0.2  # least share of the area, as in MAE's pre-training

    def evaluate(self, encoder: Encoder, data: Dataset, around: Surroundings) -> Evaluation:
        """Metrics and flags; the outcomes are each image's part of the variance."""
        self.check(data)
        split = data.open_test()
        readout = around.readout
        if "cls" in readout.token and not encoder.has_cls:
            readout = readout.model_copy(update={"token": "mean"})
        features = torch.cat([*read(encoder, data, around, readout.parts, split).values()], dim=1)
        unit = F.normalize(features.double(), dim=1)
        from_mean = (unit - unit.mean(0)).square().sum(1)
        rank, centred = effective_rank(features), effective_rank(features - features.mean(0))
        few = np.array(sampled(len(split), self.images))
        metrics = {
            "variance": float(from_mean.mean()),
            "rankme": rank,
            "rankme_centred": centred,
            "uniformity": uniformity(unit[torch.from_numpy(few).to(unit.device)]),
        }
        flags = _collapse(metrics, features)

        seen = self._look(encoder, data, split, few, around, readout)
        metrics |= {"alignment": seen["alignment"], "cka_first_last": seen["cka"][0][-1]}
        if seen["distances"]:
            metrics["attention_distance"] = float(np.mean(seen["distances"]))
        if seen["leak"] is not None:
            metrics["leak"] = seen["leak"]
            if seen["leak"] > LEAK:
                flags.append(
                    f"mask leakage: hidden patches change the visible tokens by {seen['leak']:.1%}, so its "
                    "pre-training could see what it was to predict"
                )
        facts: dict[str, Any] = {
            "readout": readout.label,
            "cka_layers": seen["cka"],
            "attention_distance_pixels": seen["distances"],
            "images_looked_at": len(few),
            "flags": flags,
        }
        return Evaluation(metrics, Values(from_mean.cpu().numpy()), facts=facts)

    def _look(
        self,
        encoder: Encoder,
        data: Dataset,
        split: Split,
        few: np.ndarray,
        around: Surroundings,
        readout: Readout,
    ) -> dict[str, Any]:
        """What takes tokens, attention or crops, of a few images."""
        device, size = encoder.mean.device, encoder.image_size
        whole = EvalTransform(size, data.defaults.crop_pct)
        crop = TrainTransform(data.defaults.suit(Augmentation(crop_scale=(self.crop_min, 1.0))), size)
        layers = tuple(range(-encoder.depth, 0))
        means: list[list[Tensor]] = [[] for _ in layers]
        distances: list[Tensor] = []
        apart: list[Tensor] = []
        leaks: list[float] = []
        looks_anywhere = True
        for first in range(0, len(few), BATCH):
            around.report(Progress(stage="looking at tokens", done=first / len(few)))
            places = few[first : first + BATCH]
            pictures = [split.image(int(i)) for i in places]
            images = torch.stack([whole(picture) for picture in pictures]).to(device)
            for own, tokens in zip(means, encoder.tokens(images, layers, norm="raw"), strict=True):
                own.append(tokens.patches.flatten(1, 2).mean(1))
            if looks_anywhere:
                try:
                    maps = encoder.attentions(images, layers)
                except UserError:  # says that this backbone has no attention
                    looks_anywhere = False
                else:
                    grid, patch = encoder.backbone.grid, encoder.backbone.patch_size
                    distances.append(torch.stack([attention_distance(m, grid, patch) for m in maps], 1))
            views = []
            for view in range(2):
                keys = rng.sample_keys(around.seed, view, places)
                crops = [crop(picture, int(key)) for picture, key in zip(pictures, keys, strict=True)]
                parts = encoder.readouts(torch.stack(crops).to(device), readout.parts)
                views.append(F.normalize(torch.cat([parts[p] for p in readout.parts], 1).double(), dim=1))
            apart.append((views[0] - views[1]).square().sum(1))
            if (leak := _leak(encoder, images)) is not None:
                leaks.append(leak)
        stacked = [torch.cat(own) for own in means]
        cka = [[round(linear_cka(a, b), 4) for b in stacked] for a in stacked]
        per_layer = torch.cat(distances).mean((0, 2)).tolist() if distances else []
        return {
            "alignment": float(torch.cat(apart).mean()),
            "cka": cka,
            "distances": [round(distance, 3) for distance in per_layer],
            "leak": max(leaks) if leaks else None,
        }


def _collapse(metrics: dict[str, float], features: Tensor) -> list[str]:
    most = min(len(features) - 1, features.shape[1])
    if metrics["variance"] < LEAST_VARIANCE:
        return [
            f"collapse: the features of all images are nearly the same (mean cosine "
            f"{1 - metrics['variance']:.6f})"
        ]
    if metrics["rankme_centred"] < max(2.0, LEAST_RANK_SHARE * most):
        return [
            f"dimensional collapse: {most} directions are possible, the features use "
            f"{metrics['rankme_centred']:.1f} (effective rank)"
        ]
    return []


def _leak(encoder: Encoder, images: Tensor) -> float | None:
    """Largest relative change of visible tokens when hidden patches get other content; None: takes no mask.

    Every second patch of a chequered board is hidden, and gets the pixels of another image.
    """
    rows, columns = encoder.backbone.grid
    if not encoder.takes_mask:
        return None
    hidden = (torch.arange(rows)[:, None] + torch.arange(columns)) % 2 == 1
    if not hidden.any() or len(images) < 2:
        return None
    mask = hidden.flatten().to(images.device).expand(len(images), -1)
    pixels = hidden.repeat_interleave(images.shape[2] // rows, 0)
    pixels = pixels.repeat_interleave(images.shape[3] // columns, 1).to(images.device)
    other = torch.where(pixels, images.roll(1, 0), images)
    before, after = (_visible(encoder, batch, mask) for batch in (images, other))
    return float((before - after).norm() / before.norm().clamp(min=1e-12))


@torch.no_grad()
def _visible(encoder: Encoder, images: Tensor, mask: Tensor) -> Tensor:
    normalised = (images.float() / 255 - encoder.mean) / encoder.std
    return encoder.backbone.encode(normalised, mask, fill="drop").patches.float()
