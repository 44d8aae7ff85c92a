"""mmengine's Runner without what it does to the process around it, and the loop it runs here.

As it comes, the Runner prints, writes logs and configurations, starts compilers to describe the machine,
seeds every generator, sets the start method of multiprocessing, and starts an own process group. Here the
process belongs to the harness, which has done what is needed of that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mimbench import seeding
from mimbench.openmm.prepare import prepare
from mimbench.openmm.samples import Stream

prepare()

from mmengine.dist import get_dist_info  # noqa: E402
from mmengine.hooks import Hook  # noqa: E402
from mmengine.logging import MMLogger  # noqa: E402
from mmengine.model import MMDistributedDataParallel  # noqa: E402
from mmengine.optim import OptimWrapper  # noqa: E402
from mmengine.registry import OPTIM_WRAPPERS  # noqa: E402
from mmengine.runner import BaseLoop, Runner  # noqa: E402
from mmengine.visualization import Visualizer  # noqa: E402

_numbers = count()  # mmengine keeps what belongs to a run by the run's name


class QuietRunner(Runner):
    """mmengine's Runner for a model that is built, whose weights are set and that is on its device."""

    def setup_env(self, env_cfg: dict[str, Any]) -> None:
        self._rank, self._world_size = get_dist_info()
        self._timestamp = f"mimbench_{next(_numbers)}"

    def set_randomness(self, seed: int | None, *_: Any, **__: Any) -> None:
        self._deterministic, self._seed = False, seed

    def build_logger(self, *_: Any, **__: Any) -> MMLogger:
        return MMLogger.get_instance("mimbench", log_level="ERROR")

    def build_visualizer(self, *_: Any) -> Visualizer:
        return Visualizer.get_instance(self._experiment_name)  # draws and keeps nothing without a backend

    def _log_env(self, env_cfg: dict[str, Any]) -> None:
        return

    def _init_model_weights(self) -> None:
        return

    def dump_config(self) -> None:
        return

    def build_train_loop(self, loop: BaseLoop | dict[str, Any]) -> BaseLoop:
        return loop if isinstance(loop, BaseLoop) else Steps(self, self._train_dataloader, **loop)

    def wrap_model(self, model_wrapper_cfg: dict[str, Any] | None, model: nn.Module) -> nn.Module:
        if self._world_size == 1:
            return model
        device = next(model.parameters()).device
        return MMDistributedDataParallel(
            module=model,
            device_ids=[device.index] if device.type == "cuda" else None,
            broadcast_buffers=False,
            # An image without objects trains no mask head; drop path leaves blocks out.
            find_unused_parameters=True,
        )


class Steps(BaseLoop):
    """``max_iters`` optimiser steps, whose draws from torch's generator depend on seed, step and process.

    begin: called when all is built; gives the step to begin with. after: called after each step with its
    number, from 1, and its losses.
    """

    def __init__(
        self,
        runner: Runner,
        dataloader: Stream,
        *,
        max_iters: int,
        seed: int,
        begin: Callable[[], int],
        after: Callable[[int, dict[str, torch.Tensor]], None],
    ):
        super().__init__(runner, dataloader)
        self.max_iters, self.max_epochs, self.epoch = max_iters, 1, 0
        self.iter = 0
        self._seed, self._begin, self._after = seed, begin, after

    def run(self) -> nn.Module:
        runner, parts = self.runner, self.dataloader.parts
        runner.call_hook("before_train")
        self.iter = self._begin()
        runner.optim_wrapper.initialize_count_status(runner.model, self.iter * parts, self.max_iters * parts)
        batches = self.dataloader.batches(self.iter, self.max_iters)
        runner.model.train()
        while self.iter < self.max_iters:
            torch.manual_seed(seeding.key(self._seed, "step", self.iter, runner.rank))
            runner.call_hook("before_train_iter", batch_idx=self.iter, data_batch=None)
            sums: dict[str, torch.Tensor] = {}
            for _ in range(parts):
                losses = runner.model.train_step(next(batches), optim_wrapper=runner.optim_wrapper)
                for name, value in losses.items():
                    if "loss" in name and name != "loss":
                        sums[name] = sums.get(name, 0) + value.detach() / parts
            runner.call_hook("after_train_iter", batch_idx=self.iter, data_batch=None, outputs=sums)
            self.iter += 1
            self._after(self.iter, sums)
        runner.call_hook("after_train")
        return runner.model


@OPTIM_WRAPPERS.register_module(name="MimbenchAutocast")
class AutocastOptimWrapper(OptimWrapper):
    """Mixed precision in bfloat16 on any device; mmengine's own wants a GPU. It needs no loss scaling."""

    def __init__(self, *, device_type: str, **options: Any):
        super().__init__(**options)
        self.device_type = device_type

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        with super().optim_context(model), torch.autocast(self.device_type, torch.bfloat16):
            yield


def make_runner(
    model: nn.Module,
    stream: Stream,
    folder: Path,
    *,
    train: dict[str, Any],
    optim_wrapper: dict[str, Any],
    schedulers: list[dict[str, Any]],
    hooks: list[Hook],
    scope: str,
) -> QuietRunner:
    """A runner that trains ``model``; of the default hooks it has the one that steps the schedulers."""
    unwanted = ("runtime_info", "timer", "sampler_seed", "logger", "checkpoint")
    return QuietRunner(
        model=model,
        work_dir=str(folder),
        train_dataloader=stream,
        train_cfg=train,
        optim_wrapper=optim_wrapper,
        param_scheduler=schedulers or None,
        default_hooks=dict.fromkeys(unwanted),
        custom_hooks=hooks,
        default_scope=scope,
    )
