"""The methods side by side: where they come from, what they use, what a training step of each costs."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from mimbench import registry, settings
from mimbench.cost import counting_tokens, measuring
from mimbench.data import training_batches
from mimbench.method import Method
from mimbench.precision import make_fabric
from mimbench.recipes import SHARED_RECIPE
from mimbench.spec import Augmentation, Budget, Setting
from mimbench.train import build_method
from mimbench.train_step import TrainStep

BATCH = 2  # images whose step is counted; every image costs the same, and some methods compare images
CLASSES = 1000  # of methods that learn from labels, as in ImageNet
UNIT = "mae"  # the method whose step costs 1


def methods_frame(backbone: str = "vit_tiny_patch16", image_size: int = 224) -> pd.DataFrame:
    """One row a method of the zoo, best known facts first.

    tokens: what goes through encoders in one step, per image: the learner's, and with a plus those that
    only give targets (moving averages, teachers). step_cost: floating-point operations of a training step
    of the whole method, relative to MAE's. Both are counted, not timed, so they are the same everywhere.

    Raises UserError for an unknown backbone or a size that does not fit it.
    """
    setting = Setting(
        data="noise",
        fingerprint="",
        image_size=image_size,
        backbone=backbone,
        budget=Budget(amount=1),
        recipe="shared",
        batch_size=BATCH,
        precision="fp32",
    )
    rows = []
    for key, cls in registry.methods().items():
        card = cls.card
        if card.role != "method":
            continue
        learner, others, flops = _step(key, setting)
        rows.append(
            {
                "key": key,
                "name": card.name,
                "year": card.year,
                "arxiv": card.arxiv,
                "scheme": card.scheme,
                "masking": card.masking,
                "target": card.target,
                "external": card.external,
                "learns_from": ", ".join(
                    f"{name} {default}" for name, default in sorted(cls.needs.items()) if default
                ),
                "parity": card.parity,
                "tokens": f"{learner:.0f} + {others:.0f}" if others else f"{learner:.0f}",
                "flops": flops,
            }
        )
    frame = pd.DataFrame(rows)
    unit = float(frame.loc[frame["key"] == UNIT, "flops"].iloc[0])
    return frame.assign(step_cost=frame["flops"] / unit).drop(columns="flops")


def markdown(frame: pd.DataFrame) -> str:
    """``methods_frame`` as a table for a README."""
    lines = [
        "| method | paper | scheme | masking | target | uses | parity | tokens an image | cost of a step |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in frame.itertuples():
        paper = f"[{row.name}, {row.year}](https://arxiv.org/abs/{row.arxiv})"
        uses = row.learns_from or ("–" if row.external == "none" else row.external)
        if row.external == "labels" and row.learns_from:
            uses = f"labels, {uses}"
        cells = (f"`{row.key}`", paper, row.scheme, row.masking, row.target, uses, row.parity)
        lines.append(f"| {' | '.join(cells)} | {row.tokens} | {row.step_cost:.2f} |")
    return "\n".join(lines) + "\n"


def _step(key: str, setting: Setting) -> tuple[float, float, float]:
    """Tokens an image through the learner's encoder, through other encoders, and FLOPs an image of a step."""
    method = untrained(key, setting)
    batches = training_batches(
        Noise(setting.image_size, BATCH),  # type: ignore[arg-type]
        augmentation=Augmentation(),
        image_size=setting.image_size,
        seed=0,
        batch_size=BATCH,
        stop=1,
        views=method.views,
    )
    step = TrainStep(method, SHARED_RECIPE, BATCH, make_fabric(setting.precision, "cpu"))
    others = [module for module in method.modules() if module is not method.encoder and _is_encoder(module)]
    with ExitStack() as stack:
        taught = [stack.enter_context(counting_tokens(module)) for module in others]
        learner = stack.enter_context(measuring(method.encoder))
        step(next(batches), 0.5)  # at the start some methods look at fewer things
    learnt = learner.tokens or 0
    return learnt / BATCH, sum(found.tokens or 0 for found in taught) / BATCH, learner.flops / BATCH


def _is_encoder(module: nn.Module) -> bool:
    return hasattr(module, "encode") and isinstance(getattr(module, "blocks", None), nn.ModuleList)


def untrained(key: str, setting: Setting) -> Method:
    """A method as the harness builds it, what it needs built likewise and trained no more than it."""
    cls = registry.find_method(key)
    provided: dict[str, Any] = {}
    for name, default in cls.needs.items():
        if default is not None:
            network = untrained(default, setting)
            provided[name] = network if name.endswith("tokenizer") else registry.as_teacher(network)
    arguments = settings.arguments(cls, settings.parse_settings(key, cls, {}))
    return build_method(
        cls, setting=setting, settings=arguments, seed=0, num_classes=CLASSES, provided=provided
    )


class Noise:
    """Stands in for a split of a dataset: what a step costs does not depend on what images show."""

    def __init__(self, size: int, count: int):
        self.size = size
        self.labels = np.zeros(count, np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> np.ndarray:
        draw = np.random.default_rng(index)
        return draw.integers(0, 256, (self.size, self.size, 3), np.uint8)
