"""Zero-shot classification against open_clip's own, with a tiny random CLIP model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from protocol_toys import SIZE, ToyDataset, around, tiny_clip, toy_encoder
from torch import nn

import mimbench.torchvision_compat  # noqa: F401  isort: skip
from mimbench import evaluate, registry, settings
from mimbench.checkpoint import save_weights
from mimbench.encoder import Encoded, Encoder, Linear
from mimbench.errors import UserError
from mimbench.spec import Readout
from mimbench.train import METHOD_FILE
from protocols.parts.clip_text import CLIP, class_names, pinned
from protocols.zeroshot import ZeroShot

open_clip = pytest.importorskip("open_clip")


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    return tiny_clip(tmp_path_factory.mktemp("clip") / "model")


class Tower(nn.Module):
    """The image tower of a CLIP model as a backbone, as its weights would be converted."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.visual, self.taken = model.visual, []
        self.visual.ln_post.register_forward_pre_hook(lambda module, given: self.taken.append(given[0]))
        self.config = {"name": "clip", "image_size": SIZE, "cls_token": True}
        self.embed_dim, self.depth, self.grid = 12, 2, (2, 2)

    def encode(self, images, mask=None, fill="drop", layers=(), attention=False, keys=None) -> Encoded:
        self.visual(images)
        raw = self.taken.pop()
        done = self.final_norm(raw)
        return Encoded(done[:, 0], done[:, 1:], None, ((raw[:, 0], raw[:, 1:]),) * len(layers), None)

    def final_norm(self, tokens):
        done = self.visual.ln_post(tokens)
        self.taken.clear()
        return done


@pytest.mark.parametrize("templates", ["openai", "simple", "name"])
def test_the_image_tower_of_clip_scores_as_in_open_clip(tmp_path, clip, templates):
    model = open_clip.create_model(clip).eval()
    encoder, data = Encoder(Tower(model), (0.5,) * 3, (0.25,) * 3), ToyDataset()
    found = ZeroShot(clip=clip, templates=templates).evaluate(encoder, data, around(tmp_path))
    prompts = {
        "openai": open_clip.OPENAI_IMAGENET_TEMPLATES,
        "simple": open_clip.SIMPLE_IMAGENET_TEMPLATES,
        "name": ("{}",),
    }[templates]
    images = torch.from_numpy(data.test.images).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        classifier = open_clip.build_zero_shot_classifier(
            model, open_clip.get_tokenizer(clip), data.classes, prompts
        )
        logits = model.encode_image((images - 0.5) / 0.25, normalize=True) @ classifier
    expected = logits.argmax(1).numpy() == data.test.labels
    np.testing.assert_array_equal(found.outcomes.hits, expected)
    assert found.metrics["top5"] == pytest.approx(
        (logits.topk(5).indices.numpy() == data.test.labels[:, None]).any(1).mean()
    )


def test_a_student_is_read_through_the_layer_that_aligned_it(tmp_path, clip):
    """Without it, the student's features lie in a space of their own and the figure is chance."""
    data, width = ToyDataset(), 9
    student = toy_encoder(dim=width, seed=3)
    readout = Readout(token="cls")
    images = torch.from_numpy(data.train.images).permute(0, 3, 1, 2)
    of_student = student.readouts(images, [readout])[readout]
    of_teacher = toy_encoder().readouts(images, [readout])[readout]
    inputs = torch.cat([of_student, torch.ones(len(images), 1)], 1)
    solution = torch.linalg.lstsq(inputs, of_teacher).solution
    alignment = Linear(solution[:-1].T.contiguous(), solution[-1])
    protocol = ZeroShot(clip=clip, templates="simple")
    surroundings = dataclasses.replace(around(tmp_path), alignment=lambda: alignment)
    found = protocol.evaluate(student, data, surroundings)
    assert found.metrics["top1"] > 1.5 / 6
    with pytest.raises(UserError, match=r"gives 9 features and .* takes 12"):
        protocol.evaluate(student, data, around(tmp_path))


def test_the_aligning_layer_is_found_in_what_training_wrote(tmp_path):
    uta = registry.find_method("uta")
    method = nn.Module()
    method.head = nn.Linear(3, 5)
    save_weights(tmp_path / METHOD_FILE, method, {})
    found = evaluate._alignment({"method": "uta"}, tmp_path)
    assert uta.alignment == "head"
    torch.testing.assert_close(found(torch.ones(2, 3)), method.head(torch.ones(2, 3)))
    assert evaluate._alignment({"method": "mae"}, tmp_path) is None
    assert evaluate._alignment({"method": "uta", "released": {}}, tmp_path) is None  # an encoder alone


def test_without_a_text_tower_it_says_what_to_give():
    with pytest.raises(UserError, match=r"--set zeroshot\.clip=ViT-B-16@PATH"):
        ZeroShot().check(ToyDataset())


def test_other_weights_under_the_same_name_are_another_evaluation(tmp_path, clip):
    folder = Path(clip.removeprefix("local-dir:"))
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (given,) = {settings.parse_settings("zeroshot", ZeroShot, {"clip": f"local-dir:{copy}"})["clip"]}
    assert pinned(given) == given  # read again where the job runs
    CLIP(given)
    (copy / "open_clip_config.json").write_text((copy / "open_clip_config.json").read_text() + " ")
    assert pinned(f"local-dir:{copy}") != given
    with pytest.raises(UserError, match="has changed since"):
        CLIP(given)


def test_a_model_of_open_clip_with_a_file_of_weights_is_the_same(tmp_path, clip, monkeypatch):
    folder = Path(clip.removeprefix("local-dir:"))
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    (tmp_path / "tiny-clip.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "tiny-clip.json")
    monkeypatch.setenv("HOME", str(folder))
    given = pinned("tiny-clip@~/open_clip_model.safetensors")
    assert given.startswith("tiny-clip@~/open_clip_model.safetensors#sha256=")
    names = ["tench", "English springer"]
    expected, found = (
        CLIP(text).class_embeddings(names, "simple", torch.device("cpu")) for text in (clip, given)
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("NoSuchModel@openai", "NoSuchModel"),
        ("ViT-B-32@nosuchtag", "nosuchtag"),
        ("local-dir:/no/such/folder", "not found"),
        ("ViT-B-32@/no/such.pt#sha256=0123456789abcdef", "check the path"),
    ],
)
def test_what_open_clip_cannot_load_is_a_sentence(wrong, said):
    with pytest.raises(UserError, match=said):
        CLIP(wrong)


def test_wnids_are_prompted_by_the_names_of_clips_authors():
    assert class_names(["n01440764", "n02102040"]) == ["tench", "English Springer Spaniel"]
    assert class_names(["garbage_truck", "n01440764"]) == ["garbage truck", "n01440764"]
    with pytest.raises(UserError, match="n99999999"):
        class_names(["n01440764", "n99999999"])
