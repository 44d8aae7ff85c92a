"""AttMask: what to hide from your students."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from method_zoo.ibot import IBOT, RECIPE, Share, Temperature
from method_zoo.parts.ema import HandOn
from method_zoo.parts.masking import random_scores
from method_zoo.parts.varying_masks import VaryingMask, most_attended, reveal_hints
from mimbench import rng
from mimbench.encoder import Backbone, Encoded
from mimbench.spec import Card, Classes


class AttMask(IBOT):
    """Attention-guided masks for iBOT (Kakogeorgiou et al., 2022, arXiv:2203.12719).

    iBOT whose masks come from the teacher: the patches that its class token attends to most are hidden
    from the student, all but a few hints.
    """

    card = Card(
        key="attmask",
        name="AttMask",
        paper="What to Hide from Your Students: Attention-Guided Masked Image Modeling",
        authors="Kakogeorgiou, Gidaris, Psomas, Avrithis, Bursuc, Karantzalos, Komodakis",
        year=2022,
        arxiv="2203.12719",
        code="https://github.com/gkakogeorgiou/attmask",
        scheme=IBOT.card.scheme,
        masking="guided by a network: the teacher's attention",
        target=IBOT.card.target,
        architecture=IBOT.card.architecture,
        objective=IBOT.card.objective,
        classes=Classes(
            masking="network-guided",
            target="trained teacher",
            architecture="plain transformer",
            objective="classification",
        ),
        recipe=RECIPE.model_copy(
            update={
                "batch_size": 240,
                "warmup": 10 / 100,
                "source": "gkakogeorgiou/attmask README, AttMask-Hint, ViT-S/16 on ImageNet-1K, 100 epochs",
            }
        ),
        readout=IBOT.card.readout,
        backbone=IBOT.card.backbone,
        parity="verified",
        notes=(
            "The loss is iBOT's, verified as that method; the masks, which are this method's own, are equal "
            'to the official ones. mode="hint" is the README\'s first command, mode="high" its second. '
            "The code draws one mask ratio a batch, here each image has its own. Hints are shown in "
            "proportion to a second draw of the ratio, as in the code; on small grids their number may "
            "round to none. Published with 10 local crops (see iBOT for the default) and with "
            "norm_last_layer=false. Settings of iBOT that are not listed keep its defaults."
        ),
    )
    attends = True

    def __init__(
        self,
        backbone: Backbone,
        *,
        hand_on: HandOn = "average",
        mode: Literal["high", "hint", "low"] = "hint",
        show_max: Share = 0.1,
        mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.3,
        mask_spread: Share = 0.2,
        unmasked: Annotated[float, Field(ge=0, lt=1)] = 0.5,
        local_crops: Annotated[int, Field(ge=0)] = 4,
        out_dim: Annotated[int, Field(ge=2)] = 8192,
        norm_last_layer: bool = True,
        teacher_temp: Temperature = 0.07,
        teacher_temp_start: Temperature = 0.04,
        teacher_temp_warmup: Share = 30 / 100,
        momentum: Share = 0.996,
    ):
        super().__init__(
            backbone,
            hand_on=hand_on,
            mask_ratio=mask_ratio,
            mask_spread=mask_spread,
            unmasked=unmasked,
            local_crops=local_crops,
            out_dim=out_dim,
            norm_last_layer=norm_last_layer,
            freeze_last_layer=1 / 100,
            teacher_temp=teacher_temp,
            teacher_temp_start=teacher_temp_start,
            teacher_temp_warmup=teacher_temp_warmup,
            momentum=momentum,
        )
        self.mode, self.show_max = mode, show_max
        self.hint_ratio = VaryingMask(mask_ratio, mask_spread, whole=0.0)

    def masks(self, whole: Encoded, keys: Tensor) -> Tensor:
        """What is hidden of the global crops, bool [2·B, N]."""
        assert whole.attention is not None
        attention = whole.attention[:, :, 0, -whole.patches.shape[1] :].mean(1)
        return self.guided(attention.float(), keys)

    def guided(self, attention: Tensor, keys: Tensor) -> Tensor:
        """Masks out of the attention that each patch gets, [n, N], and the keys of these n images."""
        share = self.masking.share(keys).double()
        if self.mode == "low":
            return most_attended(-attention, share)
        mask = most_attended(attention, share)
        if self.mode == "high":
            return mask
        shown = self.show_max * self.hint_ratio.share(rng.branch(keys, "hints")).double()
        scores = random_scores(keys, attention.shape[1], "mask/hints")
        return reveal_hints(mask, attention, self.show_max, shown, scores)
