"""Networks that a method uses but does not train."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


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


class Borrowed(nn.Module):
    """Holds a frozen network that is no part of its owner's state: ``borrowed()``.

    It moves with the owner, but neither its weights nor its name are saved with it. For what a product
    must do without: a tokenizer gives ids without the teacher that it was distilled from.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self._network = [network.requires_grad_(False).eval()]  # in a list, torch does not see it

    def __call__(self) -> nn.Module:
        return self._network[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Borrowed:
        # All of .to(), .double() and their like come down to this.
        self._network[0]._apply(fn)
        return super()._apply(fn, recurse)
