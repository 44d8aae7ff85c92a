"""timm's own names: of a vision transformer, of a ConvNeXt V2 without and a Hiera with a last norm."""

from __future__ import annotations

from dataclasses import replace

from tests.weights.proof import Proof, small

from . import convnext, hiera
from ._timm import drawn, noise, of_timm, proof

SIZES = {"embed_dim": 24, "depth": 2, "num_heads": 2}


def transformer() -> Proof:
    model = drawn(of_timm("deit_tiny_patch16_224", 64, **SIZES))
    content = model.state_dict() | {"head.weight": noise(5, 24), "head.bias": noise(5)}
    found = proof("deit@vit_tiny", content, model, 64, SIZES)
    return replace(found, cls=found.patches[:, 0], patches=found.patches[:, 1:])


def fcmae() -> Proof:
    model = of_timm("convnextv2_tiny", 64, sized=False, **convnext.ARGS)
    content = {name: value for name, value in model.state_dict().items() if not name.startswith("head.")}
    entry = small("convnextv2@tiny", origin="timm")
    return _of(proof("convnextv2@tiny", content, model, 64, convnext.ARGS, "NCHW"), entry.origin)


def masked_hiera() -> Proof:
    model = of_timm("hiera_base_224", 64, **hiera.ARGS)
    return _of(proof("hiera@base", model.state_dict(), model, 64, hiera.ARGS), "timm")


def _of(found: Proof, origin: str) -> Proof:
    return replace(found, entry=found.entry.model_copy(update={"origin": origin}))


PROOFS = {"DeiT": transformer, "FCMAE": fcmae, "Hiera": masked_hiera}
