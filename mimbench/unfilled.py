"""Modules built for weights that are at hand, without drawing random ones first."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook


def unfilled(build: Callable[[], nn.Module]) -> nn.Module:
    """The module that ``build`` gives, with parameters that hold whatever lay in memory.

    Every parameter must be loaded afterwards. Buffers have their values. Initialising a ViT-L takes longer
    than loading it; here parameters are on the meta device, where it takes no time and memory, until the
    module is whole. A module that looks at their values while it is built, or whose buffers are made of them,
    is built as usual.
    """
    own = threading.get_ident()  # the hook is torch's for all modules, and other threads may build some

    def to_meta(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta or threading.get_ident() != own:
            return None
        return nn.Parameter(parameter.to("meta"), parameter.requires_grad)

    hook = register_module_parameter_registration_hook(to_meta)
    try:
        module = build()
    except RuntimeError:  # of a value that is not there, if not of something that the next line raises again
        module = None
    finally:
        hook.remove()
    if module is None or any(buffer.is_meta for buffer in module.buffers()):
        return build()
    for parameter in module.parameters():
        if parameter.is_meta:
            empty = torch.empty_like(parameter, device="cpu")
            # Keeps the object, to which tied weights and others of the module's attributes refer
            torch.utils.swap_tensors(parameter, nn.Parameter(empty, parameter.requires_grad))
    return module
