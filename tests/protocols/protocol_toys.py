"""A backbone of a few hundred weights and a dataset in memory, both as the contracts want them."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from mimbench import rng
from mimbench.data import DataDefaults
from mimbench.encoder import Encoded, Encoder
from mimbench.errors import UserError
from mimbench.features import FeatureStore
from mimbench.progress import Progress, silent
from mimbench.protocol import Surroundings
from mimbench.spec import Readout

SIZE = 8


class ToyBackbone(nn.Module):
    """Patches of 4 pixels through ``depth`` layers, with a class token that sees their mean."""

    def __init__(self, dim: int = 12, depth: int = 4, cls_token: bool = True, seed: int = 0):
        super().__init__()
        self.config: dict[str, Any] = {"name": "toy", "image_size": SIZE, "cls_token": cls_token}
        self.embed_dim, self.depth, self.grid, self.cls_token = dim, depth, (2, 2), cls_token
        self.patch_size = 4
        generator = torch.Generator().manual_seed(seed)
        self.embed = nn.Linear(48, dim)
        self.layers = nn.ModuleList(nn.Linear(dim, dim) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        for parameter in [*self.embed.parameters(), *self.layers.parameters()]:
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5, generator=generator)
        self.drop_path = 0.0
        self.passes = 0  # forward passes, for tests that count them

    def encode(
        self, images: Tensor, mask=None, fill="drop", layers: Sequence[int] = (), attention=False, keys=None
    ):
        self.passes += 1
        patches = nn.functional.pixel_unshuffle(images, 4).flatten(2).transpose(1, 2)
        if mask is not None:
            assert fill == "drop"
            patches = patches[~mask].view(len(images), -1, patches.shape[-1])
        x = self.embed(patches)
        taps = []
        dropping = self.training and self.drop_path > 0
        for number, layer in enumerate(self.layers):
            branch = torch.tanh(layer(x))
            if dropping:
                branch = branch * (rng.uniform(keys, 1, f"drop {number}")[:, :, None] > self.drop_path)
            x = x + branch
            cls = x.amax(1) + x.mean(1) if self.cls_token else None
            taps.append((cls, x))
        cls, x = taps[-1]
        return Encoded(
            None if cls is None else self.norm(cls), self.norm(x), None, tuple(taps[i] for i in layers), None
        )

    def final_norm(self, tokens: Tensor) -> Tensor:
        return self.norm(tokens)

    def attentions(self, images: Tensor, layers: Sequence[int]):
        raise UserError("a toy has no attention")

    def rebuilt(self, *, image_size: int | None = None, drop_path: float | None = None) -> ToyBackbone:
        assert image_size in (None, SIZE)
        twin = copy.deepcopy(self).requires_grad_(True)
        twin.drop_path = self.drop_path if drop_path is None else drop_path
        return twin

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^embed", "blocks": [(r"^layers\.(\d+)", None)]}

    def no_weight_decay(self) -> set[str]:
        return set()


def toy_encoder(**options: Any) -> Encoder:
    return Encoder(ToyBackbone(**options), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))


class ToySplit:
    """A split whose images are ``images`` uint8 [N, H, W, 3]."""

    def __init__(self, name: str, images: np.ndarray, labels: np.ndarray | None):
        self.name, self.images, self.labels = name, images, labels
        content = images.tobytes() + (b"" if labels is None else labels.tobytes())
        self.fingerprint = hashlib.sha256(content).hexdigest()

    def __len__(self) -> int:
        return len(self.images)

    def image(self, i: int) -> np.ndarray:
        return self.images[i]

    def sample_id(self, i: int) -> str:
        return f"{self.name}/{i}"


class ToyDataset:
    """Images of a brightness pattern per class plus noise; counts how often test is opened."""

    spec = name = "toy"
    task = "classification"
    defaults = DataDefaults(image_size=SIZE, backbone="toy", crop_pct=1.0, flip=False, crop_min=0.7)

    def __init__(
        self, sizes: Sequence[int] = (120, 60, 80), classes: int = 6, noise: float = 70, seed: int = 0
    ):
        draw = np.random.default_rng(seed)
        patterns = draw.uniform(40, 210, (classes, SIZE, SIZE, 3))
        self.classes: tuple[str, ...] | None = tuple(f"class {c}" for c in range(classes))
        splits = []
        for name, size in zip(("train", "validation", "test"), sizes, strict=True):
            labels = np.arange(size, dtype=np.int64) % classes
            images = patterns[labels] + draw.normal(0, noise, (size, SIZE, SIZE, 3))
            splits.append(ToySplit(name, images.clip(0, 255).astype(np.uint8), labels))
        self.train, self.validation, self.test = splits
        self.test_openings, self.test_size = 0, len(self.test)

    def open_test(self) -> ToySplit:
        self.test_openings += 1
        return self.test


def around(folder: Path, seed: int = 0, report=silent) -> Surroundings:
    return Surroundings(FeatureStore(folder), seed, report)


class Reports(list[Progress]):
    """Keeps what is reported."""

    def __call__(self, progress: Progress) -> None:
        self.append(progress)


def toy_set(
    folder: Path, classes: Sequence[int], names: Sequence[str] | None = None, each: int = 8, seed: int = 1
) -> str:
    """A folder of images of some classes of the toy dataset, as a class folder each; its path.

    names: of the class folders; by default those of the classes.
    """
    made = ToyDataset((6, 6, 6 * each), noise=180)
    draw = np.random.default_rng(seed)
    for place, number in enumerate(classes):
        where = folder / (names[place] if names else f"class {number}")
        where.mkdir(parents=True)
        for i, image in enumerate(made.test.images[made.test.labels == number]):
            moved = image + draw.normal(0, 10, image.shape)
            Image.fromarray(moved.clip(0, 255).astype(np.uint8)).save(where / f"{i}.png")
    return str(folder)


def tiny_clip(folder: Path, fitted: bool = True) -> str:
    """A random CLIP model in a folder, as open_clip names it, in whose space the toy encoder's features lie.

    Its projection is fitted so that images of the toy dataset land near the prompt of their class, or is
    left random.
    """
    import mimbench.torchvision_compat  # noqa: F401  isort: skip
    import open_clip

    dim = toy_encoder().backbone.embed_dim
    config = {
        "embed_dim": dim,
        "vision_cfg": {"layers": 2, "width": dim, "head_width": 6, "patch_size": 4, "image_size": SIZE},
        "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    torch.manual_seed(0)
    model = open_clip.model.CLIP(**config).eval()
    nn.init.normal_(model.token_embedding.weight, std=1.0)  # prompts that differ in a word differ
    data, readout = ToyDataset(), Readout(token="cls")
    images = torch.from_numpy(data.train.images).permute(0, 3, 1, 2)
    features = toy_encoder().readouts(images, [readout])[readout]
    tokenizer = open_clip.SimpleTokenizer(context_length=20)
    with torch.no_grad():
        prompts = open_clip.build_zero_shot_classifier(
            model, tokenizer, data.classes, open_clip.SIMPLE_IMAGENET_TEMPLATES
        )
        # features @ projection @ prompts = one in the place of the class
        targets = torch.linalg.pinv(prompts)[torch.from_numpy(data.train.labels)]
        if fitted:
            model.visual.proj.copy_(torch.linalg.lstsq(features, targets).solution)
    folder.mkdir(parents=True)
    save_file(
        {k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    written = {"model_cfg": config, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(written), encoding="utf-8")
    return f"local-dir:{folder}"
