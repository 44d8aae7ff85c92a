"""One optimiser step: micro-batches in, weights moved. Everything around it is ``mimbench.train_loop``'s."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.optim import AdamW

from mimbench.data import Batch
from mimbench.precision import precision_of
from mimbench.schedule import learning_rate, weight_decay
from mimbench.spec import Recipe
from mimbench.trainee import Crop, Partners, Step, Trainee


def build_optimizer(trainee: Trainee, recipe: Recipe, batch_size: int, fused: bool = True) -> AdamW:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) by the recipe, one fused kernel a step."""
    return AdamW(
        trainee.parameter_groups(recipe.weight_decay),
        lr=recipe.lr(batch_size),
        betas=recipe.betas,
        eps=recipe.eps,
        fused=fused,
    )


class TrainStep:
    """Trains by one optimiser step a call, on data at hand.

    trainee: is moved to the fabric's device and wrapped for its processes and precision.
    batch_size: the effective one, over micro-batches and processes; every image of it weighs the same.
    """

    def __init__(self, trainee: Trainee, recipe: Recipe, batch_size: int, fabric: Fabric):
        self.trainee, self.recipe, self.batch_size, self.fabric = trainee, recipe, batch_size, fabric
        trainee.train()
        # fabric cannot clip behind an optimiser that unscales fp16 gradients inside its fused kernel
        fused = precision_of(fabric) != "fp16"
        self.model, self.optimizer = fabric.setup(
            trainee, build_optimizer(trainee, recipe, batch_size, fused)
        )
        mean, std = (
            torch.tensor(value, device=fabric.device).view(1, 3, 1, 1) for value in trainee.normalisation
        )
        self._scale, self._shift = 1 / (255 * std), -mean / std
        self.lr = 0.0  # of the last step, before a group's own scale

    def inputs(
        self, batch: Batch, progress: float, key: int = 0, partner: Batch | None = None
    ) -> tuple[Tensor, Step]:
        """What the trainee gets of a batch, on the device."""
        device = self.fabric.device
        images, labels = self._normalised(batch.images), self._labels(batch)
        views = tuple(
            Crop(
                images if i == 0 else self._normalised(view.images),
                view.boxes.to(device, non_blocking=True),
                view.flipped.to(device, non_blocking=True),
            )
            for i, view in enumerate(batch.views)
        )
        partners = None
        if partner is not None:
            partners = Partners(
                self._normalised(partner.images), partner.keys.to(device), self._labels(partner)
            )
        keys = batch.keys.to(device, non_blocking=True)
        return images, Step(progress, keys, labels, views, partners, key)

    def _labels(self, batch: Batch) -> Tensor | None:
        if not self.trainee.labelled or batch.labels is None:
            return None
        return batch.labels.to(self.fabric.device, non_blocking=True)

    def _normalised(self, images: Tensor) -> Tensor:
        return images.to(self.fabric.device, non_blocking=True).float().mul_(self._scale).add_(self._shift)

    def __call__(self, micro_batches: Sequence[Batch], progress: float, key: int = 0) -> dict[str, Tensor]:
        """One step at ``progress`` in [0, 1); the loss terms, scalars on the device, not yet waited for.

        A term is this process's share: its mean over processes is the mean over the step's images.
        key: see ``Step``.
        """
        self.lr = learning_rate(self.recipe, self.batch_size, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * group.get("lr_scale", 1.0)
            if group["weight_decay"]:  # norms, biases and tokens stay without
                group["weight_decay"] = weight_decay(self.recipe, progress)
        terms: dict[str, Tensor] = {}
        steps = []
        partners: Sequence[Batch | None] = [None] * len(micro_batches)
        if self.trainee.partnered:
            partners = partners_of(micro_batches, self.fabric)
        for number, (batch, partner) in enumerate(zip(micro_batches, partners, strict=True), 1):
            images, step = self.inputs(batch, progress, key, partner)
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
        self.trainee.after_step(_joined(steps))
        return terms

    def state_dict(self) -> dict[str, Any]:
        """Trainee (moving averages and buffers included), optimiser and fp16 scaler."""
        return {
            "method": self.trainee.state_dict(),
            "optimizer": self.optimizer.optimizer.state_dict(),
            "scaler": self.fabric.strategy.precision.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where ``state_dict`` was taken."""
        self.trainee.load_state_dict(state["method"], strict=True)
        self.optimizer.load_state_dict(state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["scaler"])


def _joined(steps: Sequence[Step]) -> Step:
    if len(steps) == 1:
        return steps[0]
    labels = None if steps[0].labels is None else torch.cat([s.labels for s in steps if s.labels is not None])
    return Step(steps[0].progress, torch.cat([s.keys for s in steps]), labels, key=steps[0].key)


def partners_of(micro_batches: Sequence[Batch], fabric: Fabric) -> list[Batch]:
    """For each micro-batch the samples at the other end of the whole step, over all processes.

    Sample i of a step of B has sample B - 1 - i, as in timm's mixup of one whole batch.
    """
    return [
        Batch(images, labels, keys)
        for images, labels, keys in zip(
            *(
                _other_end([getattr(batch, name) for batch in micro_batches], fabric)
                for name in ("images", "labels", "keys")
            ),
            strict=True,
        )
    ]


def _other_end(parts: Sequence[Tensor | None], fabric: Fabric) -> Sequence[Tensor | None]:
    if parts[0] is None:
        return parts
    own = torch.cat([part for part in parts if part is not None])
    if fabric.world_size > 1:
        # Process r holds every world-th sample of a step from r on, see mimbench.data.loading.
        everyone: Any = fabric.all_gather(own.to(fabric.device))  # [world, share, ...]
        own = everyone.transpose(0, 1).flatten(0, 1).flip(0)[fabric.global_rank :: fabric.world_size]
    else:
        own = own.flip(0)
    return own.split([len(part) for part in parts if part is not None])
