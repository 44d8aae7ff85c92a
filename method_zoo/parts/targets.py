"""What a method predicts, computed from the unmasked image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from method_zoo.parts.patches import patchify, take

FeatureNorm = Literal["none", "l2", "whiten"]


EPS = 1e-6  # added to the variance of a patch in MAE's target


def normalised(patches: Tensor, eps: float = EPS) -> Tensor:
    """Patches [..., D], each with mean 0 and variance 1 over its D numbers.

    MAE's target (arXiv:2111.06377): unbiased variance, ``eps`` added to it.
    """
    return (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + eps).sqrt()


def normalised_features(features: Tensor, how: FeatureNorm) -> Tensor:
    """A teacher's features [..., D], each by itself: unit length, or mean 0 and variance 1 ("whiten").

    "whiten" is a layer norm without gain and bias, as Feature Distillation (arXiv:2205.14141) names it:
    biased variance plus 1e-5. Of the zero vector both make zero.
    """
    if how == "l2":
        return F.normalize(features, dim=-1)
    if how == "whiten":
        return F.layer_norm(features, features.shape[-1:])
    return features


def pixels_at(images: Tensor, index: Tensor, patch_size: int, norm: bool = True) -> Tensor:
    """Pixels of the patches at ``index`` [B, n] of images [B, 3, H, W], as MAE's targets: [B, n, p·p·3].

    norm: each patch by its own mean and variance.
    """
    patches = take(patchify(images, patch_size), index)
    return normalised(patches) if norm else patches


def layer_average(
    layers: Sequence[Tensor],
    norm: Literal["layer", "instance", "none"] = "layer",
    norm_average: bool = True,
) -> Tensor:
    """Mean over the layers of a teacher, [B, N, D]: the target of data2vec (arXiv:2202.03555, section 3.3).

    layers: [B, N, D] each. norm: how each is normalised before, over the channels of a token ("layer") or
    over the tokens of an image, each channel by itself ("instance"), without gain or bias and with 1e-5
    added to the variance. norm_average: layer norm of the mean, too.
    """
    if norm == "layer":
        layers = [F.layer_norm(layer, layer.shape[-1:]) for layer in layers]
    elif norm == "instance":
        layers = [F.instance_norm(layer.transpose(1, 2)).transpose(1, 2) for layer in layers]
    mean = sum(layers[1:], start=layers[0]) / len(layers)
    return F.layer_norm(mean, mean.shape[-1:]) if norm_average else mean
