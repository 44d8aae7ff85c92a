"""An encoder with a linear head that is trained as a whole, and what it says of a split."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

import mimbench.torchvision_compat  # noqa: F401  isort: skip
from timm.layers import trunc_normal_
from timm.optim import param_groups_layer_decay

from mimbench.data import evaluation_batches
from mimbench.progress import Progress, silent
from mimbench.trainee import parameter_groups
from protocols.parts.answers import admitted, answers_of

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from mimbench.data import Split


class Classifier(nn.Module):
    """A backbone with a linear head on its class token ("cls"), the mean of its patch tokens or both.

    The class token goes through the encoder's own final norm, the mean of the patch tokens, as the last
    block left them, through a layer norm of its own that is new: MAE's and BEiT's ``fc_norm``.
    The head computes in fp32 in any precision: bf16 tells logits apart by three digits only.

    head_std: of the head's initial weights; its bias starts at zero.
    """

    def __init__(
        self,
        backbone: nn.Module,
        classes: int,
        *,
        token: str,
        head_std: float,
        mean: Sequence[float],
        std: Sequence[float],
    ):
        super().__init__()
        self.backbone = backbone
        self.tokens = token.split("+")
        width = _widths(backbone)
        self.fc_norm = nn.LayerNorm(width["mean"], eps=1e-6) if "mean" in self.tokens else None
        self.head = nn.Linear(sum(width[token] for token in self.tokens), classes)
        trunc_normal_(self.head.weight, std=head_std)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    @property
    def image_size(self) -> int:
        return int(self.backbone.config["image_size"])

    def forward(self, images: Tensor, keys: Tensor | None = None) -> Tensor:
        """Logits float32 [B, classes]. images: normalised [B, 3, S, S]; keys: as of ``Backbone.encode``."""
        cls, patches = self.backbone.encode(images, layers=(-1,), keys=keys).layers[0]
        parts = []
        for token in self.tokens:
            if token == "mean":
                assert self.fc_norm is not None
                parts.append(self.fc_norm(patches.mean(1)))
            else:
                parts.append(self.backbone.final_norm(cls))
        with torch.autocast(images.device.type, enabled=False):
            return self.head(torch.cat(parts, dim=1).float())

    @torch.no_grad()
    def look(self, images: Tensor) -> Tensor:
        """Logits [B, classes] of images uint8 [B, 3, S, S] as they are; call it in eval mode."""
        pixels = images.to(self.mean.device, non_blocking=True).float().div_(255)
        return self((pixels - self.mean) / self.std)

    def parameter_groups(self, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
        """timm's groups for layer-wise decay: embeddings are layer 0, block i is i + 1, head and norms
        are the last, depth + 1.

        A group's ``lr_scale`` is layer_decay ** (depth + 1 - layer), as in BEiT's and MAE's code.
        """
        if not any(parameter.requires_grad for parameter in self.backbone.parameters()):
            return parameter_groups(self, weight_decay)
        return param_groups_layer_decay(
            _Flat(self), weight_decay, self.backbone.no_weight_decay(), layer_decay=layer_decay
        )


@torch.no_grad()
def _widths(backbone: nn.Module) -> dict[str, int]:
    """Of each token: those of raw pixels differ."""
    size, training = int(backbone.config["image_size"]), backbone.training
    cls, patches = backbone.eval().encode(torch.zeros(1, 3, size, size), layers=(-1,)).layers[0]
    backbone.train(training)
    return {"cls": 0 if cls is None else cls.shape[1], "mean": patches.shape[2]}


class _Flat(nn.Module):
    """The parameters of a classifier by the names that its backbone knows them by."""

    def __init__(self, classifier: Classifier):
        super().__init__()
        backbone = classifier.backbone
        self.group_matcher = backbone.group_matcher
        for name, parameter in backbone.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, module in backbone.named_children():
            self.add_module(name, module)
        self.add_module("fc_norm", classifier.fc_norm)
        self.add_module("head", classifier.head)


@dataclass(frozen=True)
class Viewing:
    """How a classifier is shown the images of a split. batch_size: a process's own."""

    fabric: Fabric
    crop_pct: float
    workers: int = 0
    batch_size: int = 64
    report: Callable[[Progress], None] = silent

    def logits(self, classifier: Classifier, split: Split) -> Tensor:
        """Logits float32 [N, classes] of a split in its order, on the CPU. Collective, as all here."""
        return torch.cat(list(self.blocks(classifier, split)))

    def judge(self, classifier: Classifier, split: Split) -> tuple[np.ndarray, float]:
        """The place of the true class in each image's order, 0 the first, int64 [N], and mean cross-entropy.

        Between equal logits the lower class comes first; logits that are not a number put the true one last.
        A split's ``answers`` are heeded, see ``protocols.parts.answers``.
        """
        labels = torch.from_numpy(np.ascontiguousarray(split.labels, np.int64))
        ranks, loss, done = [], 0.0, 0
        for logits in self.blocks(classifier, split):
            rows = slice(done, done + len(logits))
            logits, label = admitted(answers_of(split), logits, labels[rows], rows)
            done, label = rows.stop, label[:, None]
            own, classes = logits.gather(1, label), torch.arange(logits.shape[1])
            ahead = (logits > own) | ((logits == own) & (classes < label)) | own.isnan()
            ranks.append(ahead.sum(1))
            loss += float((logits.logsumexp(1, keepdim=True) - own).sum(dtype=torch.float64))
        return torch.cat(ranks).numpy(), loss / len(labels)

    def blocks(self, classifier: Classifier, split: Split) -> Iterator[Tensor]:
        """Logits of consecutive images, float32 [b, classes] on the CPU, the same on every process.

        Every forward pass has the same shape, as in the extraction of features: the last batch is filled up
        with copies, so that an image's logits do not depend on how many processes there are.
        """
        fabric, device = self.fabric, self.fabric.device
        was_training = classifier.training
        classifier.to(device).eval()
        batches = evaluation_batches(
            split,
            image_size=classifier.image_size,
            crop_pct=self.crop_pct,
            batch_size=self.batch_size,
            rank=fabric.global_rank,
            world=fabric.world_size,
            workers=self.workers,
        )
        size = classifier.image_size
        fallback = torch.zeros(1, 3, size, size, dtype=torch.uint8)
        for start in range(0, len(split), self.batch_size * fabric.world_size):
            _, images = next(batches, (None, fallback))  # a process may have no image in the last round
            if len(images) < self.batch_size:
                images = torch.cat([images, images[-1:].expand(self.batch_size - len(images), -1, -1, -1)])
            with fabric.autocast():
                logits = classifier.look(images)
            if fabric.world_size > 1:
                gathered: Any = fabric.all_gather(logits)  # [world, b, classes]
                logits = gathered.transpose(0, 1).flatten(0, 1)  # process r holds every world-th image
            yield logits[: len(split) - start].cpu()
            if fabric.is_global_zero:
                self.report(Progress(f"looking at {split.name}", done=min(1.0, start / len(split))))
        classifier.train(was_training)
