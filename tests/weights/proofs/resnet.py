"""ResNets, SparK's and A2MIM's: against torchvision's on whole images, with statistics of their own."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor
from torchvision.models.resnet import Bottleneck

from tests.weights.proof import Proof, images_of, small

from ._timm import drawn, noise

ARGS = {"layers": [1, 2, 1, 1]}


@torch.no_grad()
def _proof(entry: str, wrapped) -> Proof:
    torch.manual_seed(0)
    model = drawn(torchvision.models.ResNet(Bottleneck, ARGS["layers"]))
    for part in model.modules():  # else what is drawn grows with each of the blocks
        if isinstance(part, torch.nn.Conv2d):
            part.weight.mul_(0.1)
            part.weight.copy_(part.weight.float())
    images = images_of(64)
    x = model.maxpool(model.relu(model.bn1(model.conv1(images))))
    x = model.layer4(model.layer3(model.layer2(model.layer1(x))))
    described = small(entry, image_size=64, options={"model_args": ARGS})
    tokens = x.flatten(2).transpose(1, 2)
    return Proof(described, wrapped(model.state_dict()), images, None, tokens, "torchvision's ResNet")


def _openmixup(state: dict[str, Tensor]) -> dict:
    state = {f"backbone.{name}": value for name, value in state.items() if not name.startswith("fc.")}
    state |= {"backbone.mask_token": noise(1, 1024, 1, 1)}
    state |= {"neck.decoder_pred.0.weight": noise(3072, 2048, 1, 1), "neck.decoder_pred.0.bias": noise(3072)}
    return {"meta": {"epoch": 300}, "state_dict": state}


PROOFS = {
    "SparK": lambda: _proof("spark@resnet50", lambda state: state),
    "SparK, within a module": lambda: _proof("spark@resnet101", lambda state: {"module": state}),
    "A2MIM": lambda: _proof("a2mim@resnet50", _openmixup),
}
