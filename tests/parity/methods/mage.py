"""MAGE."""

from __future__ import annotations

from dataclasses import replace

import torch

from method_zoo.mage import MAGE
from method_zoo.parts.masking import Masked, mask_from_scores
from method_zoo.vqvae import VQVAE
from mimbench.method import Losses

from ..adapter import Adapter, Config, Rules, assert_same_output, vit
from ..records import Official
from ._shared import Vocabulary


class _Tokens(Vocabulary):
    """Where the VQGAN would be, which the records do without; says the least a tokenizer must of itself."""

    card, config = VQVAE.card, {}


def _build(config: Config) -> MAGE:
    return MAGE(
        vit(config, **MAGE.card.backbone),
        tokenizer=_Tokens(config["codebook"]),
        mask_ratio_min=config["mask_ratio_min"],
        label_smoothing=config["label_smoothing"],
        dropout=0.0,  # the official run was in eval mode
        decoder_dim=config["decoder_embed_dim"],
        decoder_depth=config["decoder_depth"],
        decoder_heads=config["decoder_num_heads"],
    )


def _mask(method: MAGE, run: Official) -> Masked:
    """The official code hides and drops the tokens of the smallest noise."""
    (noise,) = run.draws
    hidden = int(run.outputs["all_mask"][0].sum())
    dropped = method.masking.n_dropped(method.encoder.grid)
    mask = Masked(mask_from_scores(-noise, hidden), mask_from_scores(-noise, dropped))
    for ours, official in zip(mask, ("all_mask", "drop_mask"), strict=True):
        assert (ours == run.outputs[official][:, 1:].bool()).all()  # after the class token's
    return mask


def _losses(method: MAGE, run: Official) -> Losses:
    return method.losses(run.inputs["token_ids"], _mask(method, run))


def _check(method: MAGE, run: Official) -> None:
    mask = _mask(method, run)
    encoded = method.encoder.encode_ids(run.inputs["token_ids"], mask.hidden, mask.dropped)
    assert encoded.cls is not None
    latent = torch.cat([encoded.cls.unsqueeze(1), encoded.patches], dim=1)
    assert_same_output(latent, run.outputs["latent"], run.tolerance)


def _rules(config: Config) -> Rules:
    return [
        (r"encoder\.words\.", "model/token_emb.word_embeddings."),
        (r"encoder\.pos_embed", "model/token_emb.position_embeddings.weight"),
        (r"encoder\.embed_norm\.", "model/token_emb.LayerNorm."),
        (r"encoder\.", "model/"),
        (r"decoder_embed\.", "model/decoder_embed."),
        (r"pos_embed", "model/decoder_pos_embed_learned"),
        (r"decoder\.head\.", "model/mlm_layer.fc."),
        (r"decoder\.(blocks|norm)\.", r"model/decoder_\1."),
        (r"to_words\.1\.", "model/mlm_layer.ln."),
        (r"bias", "model/mlm_layer.bias"),
    ]


class _Adapter(Adapter):
    def load(self, method: MAGE, run: Official) -> dict[str, str]:
        """Without the words that the official code never reads: those of all classes but one."""
        state, codes = dict(run.state), run.config["codebook"]
        words = state["model/token_emb.word_embeddings.weight"]
        special = words[[run.config["fake_class"], run.config["mask_token"]]]
        state["model/token_emb.word_embeddings.weight"] = torch.cat([words[:codes], special])
        state["model/mlm_layer.bias"] = state["model/mlm_layer.bias"][..., :codes]
        return super().load(method, replace(run, state=state))


ADAPTER = _Adapter(
    build=_build,
    losses=_losses,
    rules=_rules,
    # What the official code inherited from MAE and never reads.
    unused=r"pos_embed$|position_ids$|/cls_token$|/mask_token$|/patch_embed\.|/decoder_pred\.",
    check=_check,
)
