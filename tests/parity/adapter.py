"""How an official run is repeated with our classes.

A method that joins the zoo adds a file ``methods/<key>.py`` with its key map and its ``ADAPTER``, and its
figures under ``figures/<key>/``.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from method_zoo.backbones import build
from mimbench.method import Losses, Method

from .records import Official

Rules = list[tuple[str, str]]  # (regular expression at the start of our name, replacement)
Config = dict[str, Any]


def rename(name: str, rules: Rules) -> str:
    """The official name of our parameter ``name``: the first rule that matches its start rewrites that."""
    for pattern, replacement in rules:
        renamed, hits = re.subn(f"^{pattern}", replacement, name)
        if hits:
            return renamed
    raise LookupError(f"no rule for our parameter {name}")


def _always(config: Config) -> None:
    return None


@dataclass(frozen=True)
class Adapter:
    """One method's way from an official run to ours.

    build: our method in the official configuration.
    losses: our losses on the official inputs and draws.
    rules: our parameter names to official ones.
    unused: official state that ours computes by itself or has no use for, a regular expression (in a
        configuration, where it differs between them).
    extra: our parameters that the official code lacks because nothing reads them, a regular expression.
    tables: our fixed position tables and their official names, where the official code computes them in
        float32: full records hold them, and parity to 1e-9 takes their very roundings.
    layout: an official parameter, by its name, with its numbers in our order, where shapes do not say it.
    parts: our loss terms and their official names.
    check: what else the record can tell.
    rounding: how far the loss in float32 may lie off the official one, in which other roundings add up.
    unsupported: why a configuration cannot be built, None where it can.
    """

    build: Callable[[Config], Method]
    losses: Callable[[Any, Official], Losses]
    rules: Callable[[Config], Rules]
    unused: str | Callable[[Config], str] = r"(?!)"
    extra: str = r"(?!)"
    tables: dict[str, str] = field(default_factory=dict)
    layout: Callable[[str, Tensor], Tensor] = lambda name, official: official
    parts: dict[str, str] = field(default_factory=dict)
    check: Callable[[Any, Official], None] = lambda method, run: None
    rounding: float = 2e-6
    unsupported: Callable[[Config], str | None] = _always

    def has_no_use_for(self, name: str, config: Config) -> bool:
        """Whether an official parameter or buffer is ``unused`` in a configuration."""
        unused = self.unused if isinstance(self.unused, str) else self.unused(config)
        return re.search(unused, name) is not None

    def load(self, method: Method, run: Official) -> dict[str, str]:
        """Set every parameter of ``method`` from the record; returns our names -> official ones.

        Every official parameter must be used exactly once and every one of ours be set, to NaN where
        nothing may read it.
        """
        parameters = dict(method.named_parameters())
        with torch.no_grad():
            for name in [name for name in parameters if re.match(self.extra, name)]:
                parameters.pop(name).fill_(torch.nan)
        rules = self.rules(run.config)
        names = {ours: rename(ours, rules) for ours in parameters}
        wanted = [name for name in run.state if not self.has_no_use_for(name, run.config)]
        assert sorted(names.values()) == sorted(wanted)
        with torch.no_grad():
            for ours, parameter in parameters.items():
                official = self.layout(names[ours], run.state[names[ours]])
                parameter.copy_(official.reshape(parameter.shape))
            for ours, name in self.tables.items():
                if name in run.state:
                    table = method.get_buffer(ours)
                    rows = run.state[name].flatten(0, -2)[-table.shape[-2] :]  # class token's first
                    torch.testing.assert_close(table, rows.view(table.shape), rtol=0, atol=3e-7)
                    table.copy_(rows.view(table.shape))
        return names


def assert_same_output(ours: Tensor, official: Any, tolerance: float = 1e-9) -> None:
    """Compare an intermediate tensor with the one held (in float32) or with its statistics.

    tolerance: of the statistics, ``Official.tolerance`` where the official code computed in float32.
    """
    if isinstance(official, Tensor):
        torch.testing.assert_close(ours, official.to(ours.dtype), rtol=1e-6, atol=1e-6)
        return
    assert list(ours.shape) == official["shape"]
    found = torch.stack([ours.mean(), ours.std(correction=0), ours.norm(), *ours.flatten()[:4]])
    expected = [official["mean"], official["std"], official["l2"], *official["first"]]
    torch.testing.assert_close(found.tolist(), expected, rtol=tolerance, atol=tolerance)


def vit(config: Config, **options: Any) -> nn.Module:
    """The zoo's vision transformer in an official configuration."""
    sizes = {name: config[name] for name in ("embed_dim", "depth", "num_heads", "mlp_ratio")}
    return build(f"vit_base_patch{config['patch_size']}", config["img_size"], **{**options, **sizes})


def adapters() -> dict[str, Adapter]:
    """The adapter of each file of ``methods/``, by method key."""
    from . import methods

    names = [module.name for module in pkgutil.iter_modules(methods.__path__) if module.name[0] != "_"]
    return {name: importlib.import_module(f"{methods.__name__}.{name}").ADAPTER for name in names}
