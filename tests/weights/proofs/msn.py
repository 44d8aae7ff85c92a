"""MSN's layout: against timm; the encoder beside the target encoder is another."""

from __future__ import annotations

from tests.weights.proof import Proof, images_of, small

from ._reference import SIZES, noise, timm_model, tokens, within

HEAD = {
    "fc.fc1.weight": noise(56, 48),
    "fc.fc1.bias": noise(56),
    "fc.bn1.weight": noise(56),
    "fc.bn1.bias": noise(56),
    "fc.bn1.running_mean": noise(56),
    "fc.bn1.running_var": noise(56).square(),
    "fc.bn1.num_batches_tracked": noise(1).long(),
    "fc.fc2.weight": noise(56, 56),
    "fc.fc3.weight": noise(32, 56),
    "fc.fc3.bias": noise(32),
}


def _proof(name: str, timm_name: str, size: int, patch: int) -> Proof:
    model, images = timm_model(timm_name, size, patch_size=patch), images_of(size)
    out, target = tokens(model, images), model.state_dict()
    content = {
        "target_encoder": within("module.", target | HEAD),
        "encoder": within("module.", {k: v + 1 for k, v in target.items()} | HEAD),
        "prototypes": noise(20, 32),
        "epoch": 800,
    }
    entry = small(name, image_size=size, options=SIZES)
    return Proof(entry, content, images, out[:, 0], out[:, 1:], "timm's VisionTransformer")


PROOFS = {
    "whole images": lambda: _proof("msn@vit_small", "vit_small_patch16_224", 64, 16),
    "patches of 7": lambda: _proof("msn@vit_large_patch7", "vit_large_patch16_224", 35, 7),
}
