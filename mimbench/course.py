"""What a run of the training loop goes through, whatever is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from mimbench.spec import Augmentation, Budget, Recipe

if TYPE_CHECKING:
    from mimbench.data import Split


@dataclass(frozen=True)
class Course:
    """What a run goes through, whatever is trained.

    augmentation: as the images bear it (``Dataset.defaults.suit``). batch_size: the effective one.
    """

    split: Split
    recipe: Recipe
    augmentation: Augmentation
    image_size: int
    batch_size: int
    budget: Budget
    seed: int

    def identity(self) -> dict[str, Any]:
        """All that decides what comes out, as JSON data."""
        return {
            "split": self.split.fingerprint,
            "recipe": self.recipe.content(),
            "augmentation": self.augmentation.content(),
            "image_size": self.image_size,
            "batch_size": self.batch_size,
            "budget": self.budget.content(),
            "seed": self.seed,
        }


class Visits(Protocol):
    """Looks at a trainee during its run, such as to score it on validation.

    shares: of the run at which it looks, ascending, in (0, 1]. Its state goes into the run's checkpoints.
    """

    shares: Sequence[float]

    def __call__(self, share: float) -> None:
        """Look, at one of ``shares``; on every process. May leave the trainee in eval mode."""

    def state_dict(self) -> dict[str, Any]:
        """Plain containers, numbers, strings and tensors."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``."""
