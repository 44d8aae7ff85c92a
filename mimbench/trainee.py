"""What the training loop trains: a pre-training method, or what a protocol trains on top of an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from mimbench.spec import View

# Tables and tokens that are added to or stand in for activations, and weights that mix layers: decay would
# only pull them to zero.
_UNDECAYED = (
    "cls_token",
    "mask_token",
    "pos_embed",
    "relative_position",
    "rel_pos",
    "register_tokens",
    "layer_weights",
)


class Losses(dict[str, Tensor]):
    """Named scalar terms, already weighted; what is minimised is their sum."""

    @property
    def total(self) -> Tensor:
        return sum(self.values())  # type: ignore[return-value]


class Crop(NamedTuple):
    """One view of a batch: what was cut out of the images and where."""

    images: Tensor  # float [B, 3, S, S], normalised; S differs between views
    boxes: Tensor  # float [B, 4]: top, left, height, width of the crop, as shares of the image's sides
    flipped: Tensor  # bool [B]


class Partners(NamedTuple):
    """For each sample of a batch the one it is mixed with: of sample i of a step with B, sample B - 1 - i."""

    images: Tensor  # float [B, 3, H, W], normalised
    keys: Tensor  # int64 [B]
    labels: Tensor | None  # int64 [B]


@dataclass(frozen=True)
class Step:
    """What a trainee may know of the moment.

    progress: share of the run that is done, in [0, 1).
    keys: int64 [B], one random key a sample (see ``mimbench.rng``); all draws about samples come from it.
    labels: int64 [B] for trainees that are ``labelled``; None for every other.
    views: for trainees with ``views``: the batch itself as the first crop, then one crop for each of them.
    partners: for trainees that have ``partnered`` set.
    key: one random key for the whole optimiser step, the same in all its micro-batches and processes.
    """

    progress: float
    keys: Tensor
    labels: Tensor | None = None
    views: tuple[Crop, ...] = ()
    partners: Partners | None = None
    key: int = 0


class Trainee(nn.Module):
    """Maps normalised images to losses. Its state dict holds everything that training changes.

    views: further crops of each training image that ``Step.views`` is to hold.
    partnered: whether ``Step.partners`` is to hold what each sample is mixed with; one process and several
    then mix the same samples, however a step is cut into micro-batches.
    encoder: its FLOPs and tokens are what cost counts.
    """

    views: tuple[View, ...] = ()
    partnered: bool = False
    encoder: nn.Module

    @property
    def normalisation(self) -> tuple[Sequence[float], Sequence[float]]:
        """Mean and standard deviation of the three channels, of pixels in [0, 1]."""
        raise NotImplementedError

    @property
    def labelled(self) -> bool:
        """Whether it learns from labels."""
        return False

    def forward(self, images: Tensor, step: Step) -> Losses:
        """Losses of one batch. images: float [B, 3, H, W], normalised."""
        raise NotImplementedError

    def after_step(self, step: Step) -> None:
        """Called after each optimiser step; moving averages live here."""

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Groups for the optimiser. A group's ``lr_scale`` multiplies the rate of the recipe."""
        return parameter_groups(self, weight_decay)


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices decay; biases, norms, tokens and positions do not."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            own_name = name.rpartition(".")[2]
            exempt = parameter.ndim <= 1 or any(part in own_name for part in _UNDECAYED)
            (plain if exempt else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
