"""The one recipe for all that ``--recipe shared`` trains with, and who gets which."""

from __future__ import annotations

from typing import Literal

from mimbench.spec import Augmentation, Card, Recipe

SHARED_RECIPE = Recipe(
    base_lr=1.5e-3,
    lr_rule="per_256",
    batch_size=256,
    betas=(0.9, 0.95),
    weight_decay=0.05,
    warmup=0.1,
    schedule="cosine",
    min_lr=0.0,
    clip_grad=3.0,
    augmentation=Augmentation(crop_scale=(0.2, 1.0), flip=True),
    source=(
        "mimbench: what MAE, SimMIM, BEiT and HPM have in common (AdamW, weight decay 0.05, warm-up then "
        "cosine, random resized crop and flip, linear scaling of the rate); beta2 0.95 is MAE's and HPM's, "
        "clipping at 3 BEiT's (SimMIM clips at 5, MAE not at all), so that no method's gradients spike. The "
        "rate is ten times MAE's per 256, because a budget of tens of epochs needs larger steps than the "
        "published 800 to 1600 epochs; 10 % warm-up makes that safe"
    ),
)


def recipe_for(card: Card, policy: Literal["paper", "shared"] | None) -> Recipe | None:
    """The recipe ``card``'s method is trained with; None for a method that is never trained.

    A tokenizer keeps its own recipe under both policies: it is no row of the table, and a
    masked-image recipe would train it badly to nobody's benefit.
    """
    if card.recipe is None or policy == "paper" or card.role == "tokenizer":
        return card.recipe
    return SHARED_RECIPE
