"""ConvNeXt's layout: SparK's ConvNeXt and FCMAE's ConvNeXt V2, against timm's on whole images."""

from __future__ import annotations

from tests.weights.proof import Proof

from ._timm import noise, of_timm, officially, proof

ARGS = {"depths": [1, 1, 2, 1], "dims": [8, 16, 24, 32]}
OFFICIAL = [
    (r"stem\.(.*)", r"downsample_layers.0.\1"),
    (r"stages\.(\d)\.downsample\.(.*)", r"downsample_layers.\1.\2"),
    (r"stages\.(\d)\.blocks\.(\d+)\.conv_dw\.(.*)", r"stages.\1.\2.dwconv.\3"),
    (r"stages\.(\d)\.blocks\.(\d+)\.mlp\.fc([12])\.(.*)", r"stages.\1.\2.pwconv\3.\4"),
    (r"stages\.(\d)\.blocks\.(\d+)\.mlp\.grn\.weight", r"stages.\1.\2.grn.gamma"),
    (r"stages\.(\d)\.blocks\.(\d+)\.mlp\.grn\.bias", r"stages.\1.\2.grn.beta"),
    (r"stages\.(\d)\.blocks\.(\d+)\.(.*)", r"stages.\1.\2.\3"),
    (r"head\.norm\.(.*)", r"norm.\1"),
]


def spark() -> Proof:
    model = of_timm("convnext_small", 64, sized=False, **ARGS)
    state = officially(model.state_dict(), OFFICIAL)
    return proof("spark@convnext_small", {"module": state}, model, 64, ARGS, "NCHW")


def fcmae(size: str = "tiny") -> Proof:
    model = of_timm(f"convnextv2_{size}", 64, sized=False, **ARGS)
    state = officially(model.state_dict(), OFFICIAL)
    state = {name: value for name, value in state.items() if not name.startswith("norm.")}
    for name, value in state.items():
        if "grn" in name:
            state[name] = value.view(1, 1, 1, -1)
        elif "pwconv" in name and value.ndim == 4:
            state[name] = value.flatten(1)
    state |= {"mask_token": noise(1, 512, 1, 1), "proj.weight": noise(512, 32, 1, 1), "proj.bias": noise(512)}
    state |= {"decoder.0.dwconv.weight": noise(512, 1, 7, 7), "pred.weight": noise(3072, 512, 1, 1)}
    return proof(f"convnextv2@{size}", {"model": state}, model, 64, ARGS, "NCHW")


PROOFS = {"SparK": spark, "FCMAE": fcmae, "FCMAE, a small one": lambda: fcmae("atto")}
