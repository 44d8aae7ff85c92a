"""Networks that a method uses but does not train."""

from __future__ import annotations

from torch import nn


class Frozen(nn.Module):
    """Holds networks by name, without gradients and always in eval mode: ``frozen["encoder"]``.

    They move with the method and are part of its state.
    """

    def __init__(self, **networks: nn.Module):
        super().__init__()
        self.networks = nn.ModuleDict(networks).requires_grad_(False)
        super().train(False)

    def __getitem__(self, name: str) -> nn.Module:
        return self.networks[name]

    def train(self, mode: bool = True) -> Frozen:
        """Stays in eval mode: dropout or a moving codebook would make targets drift."""
        return self
