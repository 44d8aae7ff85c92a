"""One optimiser step: micro-batches in, weights moved. Everything around it is ``mimbench.train``'s."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import AdamW

from mimbench.method import Crop, Method, Step
from mimbench.precision import precision_of
from mimbench.schedule import learning_rate, weight_decay
from mimbench.spec import Recipe

if TYPE_CHECKING:
    from mimbench.data import Batch

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


def build_optimizer(module: nn.Module, recipe: Recipe, batch_size: int, fused: bool = True) -> AdamW:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) by the recipe, one fused kernel a step."""
    return AdamW(
        parameter_groups(module, recipe.weight_decay),
        lr=recipe.lr(batch_size),
        betas=recipe.betas,
        eps=recipe.eps,
        fused=fused,
    )


class TrainStep:
    """Trains a method by one optimiser step a call, on data at hand.

    method: is moved to the fabric's device and wrapped for its processes and precision.
    batch_size: the effective one, over micro-batches and processes; every image of it weighs the same.
    """

    def __init__(self, method: Method, recipe: Recipe, batch_size: int, fabric: Fabric):
        self.method, self.recipe, self.batch_size, self.fabric = method, recipe, batch_size, fabric
        method.train()
        # fabric cannot clip behind an optimiser that unscales fp16 gradients inside its fused kernel
        fused = precision_of(fabric) != "fp16"
        self.model, self.optimizer = fabric.setup(method, build_optimizer(method, recipe, batch_size, fused))
        mean, std = (
            torch.tensor(value, device=fabric.device).view(1, 3, 1, 1)
            for value in (method.card.mean, method.card.std)
        )
        self._scale, self._shift = 1 / (255 * std), -mean / std
        self._with_labels = method.card.external == "labels"

    @property
    def lr(self) -> float:
        """Of the last step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def inputs(self, batch: Batch, progress: float) -> tuple[Tensor, Step]:
        """What the method gets of a batch, on the device."""
        device = self.fabric.device
        images = self._normalised(batch.images)
        labels = None
        if self._with_labels and batch.labels is not None:
            labels = batch.labels.to(device, non_blocking=True)
        views = tuple(
            Crop(
                images if i == 0 else self._normalised(view.images),
                view.boxes.to(device, non_blocking=True),
                view.flipped.to(device, non_blocking=True),
            )
            for i, view in enumerate(batch.views)
        )
        return images, Step(progress, batch.keys.to(device, non_blocking=True), labels, views)

    def _normalised(self, images: Tensor) -> Tensor:
        return images.to(self.fabric.device, non_blocking=True).float().mul_(self._scale).add_(self._shift)

    def __call__(self, micro_batches: Sequence[Batch], progress: float) -> dict[str, Tensor]:
        """One step at ``progress`` in [0, 1); the loss terms, scalars on the device, not yet waited for.

        A term is this process's share: its mean over processes is the mean over the step's images.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, self.batch_size, progress)
            if group["weight_decay"]:  # norms, biases and tokens stay without
                group["weight_decay"] = weight_decay(self.recipe, progress)
        terms: dict[str, Tensor] = {}
        steps = []
        for number, batch in enumerate(micro_batches, 1):
            images, step = self.inputs(batch, progress)
            # Gradients of processes are averaged and those of micro-batches added up.
            weight = len(images) * self.fabric.world_size / self.batch_size
            with self.fabric.no_backward_sync(self.model, enabled=number < len(micro_batches)):
                losses = self.model(images, step)
                total = sum(losses.values())
                self.fabric.backward(total if weight == 1 else total * weight)
            for name, loss in losses.items():
                share = loss.detach() if weight == 1 else loss.detach() * weight
                terms[name] = terms[name] + share if name in terms else share
            steps.append(step)
        if self.recipe.clip_grad is not None:
            # A non-finite norm shows in the next loss, which is watched; waiting for it here costs a sync.
            self.fabric.clip_gradients(
                self.model, self.optimizer, max_norm=self.recipe.clip_grad, error_if_nonfinite=False
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.method.after_step(_joined(steps))
        return terms

    def state_dict(self) -> dict[str, Any]:
        """Method (moving averages and buffers included), optimiser and fp16 scaler."""
        return {
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.optimizer.state_dict(),
            "scaler": self.fabric.strategy.precision.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where ``state_dict`` was taken."""
        self.method.load_state_dict(state["method"], strict=True)
        self.optimizer.load_state_dict(state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["scaler"])


def _joined(steps: Sequence[Step]) -> Step:
    if len(steps) == 1:
        return steps[0]
    labels = None if steps[0].labels is None else torch.cat([s.labels for s in steps if s.labels is not None])
    return Step(steps[0].progress, torch.cat([s.keys for s in steps]), labels)
