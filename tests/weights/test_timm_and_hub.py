"""``timm:NAME`` and ``hf:OWNER/REPO``: fetched by the hub's client, converted once, honest about labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import mimbench.torchvision_compat  # noqa: F401  isort: skip
import timm
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch.testing import assert_close

from mimbench.checkpoint import load_encoder, save_weights
from mimbench.errors import UserError
from mimbench.registry import build_backbone, find_origin
from mimbench.weights.entries import find_entry
from mimbench.weights.given import Given, resolve
from mimbench.weights.timm_facts import told
from mimbench.weights.timm_files import TimmWeights, convert
from tests.web import serving

from .fake_hub import COMMIT, FakeHub
from .proofs import transformers_beit, transformers_mae, transformers_vit

SMALL: dict[str, dict[str, Any]] = {
    "swin_tiny_patch4_window7_224": {"embed_dim": 16, "depths": (1, 2), "num_heads": (2, 4)},
    "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)},
    "vit_tiny_patch16_224": {"embed_dim": 24, "depth": 2, "num_heads": 2},
    "beit_base_patch16_224": {"embed_dim": 24, "depth": 2, "num_heads": 2},
    "test_resnet": {},
}


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    monkeypatch.setenv("MIMBENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    return FakeHub(tmp_path / "hub", monkeypatch)


def drawn(name: str, **options: Any) -> Any:
    """A model of timm all of whose tensors are drawn."""
    torch.manual_seed(0)
    model = timm.create_model(name, **options).eval()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor += torch.randn_like(tensor) * 0.1
    return model


def pushed(fake: FakeHub, repo: str, model: Any, folder: Path, **config: Any) -> Path:
    """A repository as timm's ``push_to_hf_hub`` makes it."""
    save_for_hf(model, folder, model_config=config, safe_serialization=True)
    return fake.add(repo, {path.name: path for path in folder.iterdir()})


def tokens_of(given: Given, images: torch.Tensor) -> Any:
    encoder = load_encoder(given.path)
    return encoder.backbone.encode(images, layers=(-1,))


def test_weights_of_timm_come_out_of_the_hub_s_cache_with_all_that_is_known(
    fake: FakeHub, tmp_path: Path
) -> None:
    name = "test_vit.r160_in1k"
    model = drawn("test_vit", num_classes=1000)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    fake.add(f"timm/{name}", {"model.safetensors": tmp_path / "model.safetensors"})
    given = resolve(f"timm:{name}")
    images = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        expected = model.forward_features(images)
        out = tokens_of(given, images)
    assert_close(out.cls, expected[:, 0])
    assert_close(out.patches, expected[:, 1:])
    facts = timm.get_pretrained_cfg(name)
    assert given.label == f"timm:{name}"
    assert given.config == {"name": "timm:test_vit", "image_size": 160, "cls_token": True, "drop_path": 0.0}
    assert given.metadata["mean"] == list(facts.mean)
    assert given.metadata["std"] == list(facts.std)
    assert given.readout.label == "cls@-1"
    release = given.release
    assert release["revision"] == COMMIT
    assert release["url"] == f"https://huggingface.co/timm/{name}"
    assert release["num_classes"] == 1000
    assert release["labels"] is True
    assert release["external"] == "labels"
    assert release["data"] == "ImageNet-1K"
    assert set(release["dropped"]) == {"head.weight", "head.bias"}
    assert set(release["used"]) == model.state_dict().keys() - release["dropped"].keys()


def test_they_are_converted_once_and_anew_only_where_the_code_changed(
    fake: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(drawn("test_vit").state_dict(), tmp_path / "model.safetensors")
    snapshot = fake.add("timm/test_vit.r160_in1k", {"model.safetensors": tmp_path / "model.safetensors"})
    first = resolve("timm:test_vit.r160_in1k")
    (snapshot / "model.safetensors").unlink()
    assert resolve("timm:test_vit.r160_in1k").path == first.path
    assert resolve("mine=timm:test_vit.r160_in1k").label == "mine"
    monkeypatch.setattr("mimbench.weights.timm_files.VERSION", 2)
    with pytest.raises(UserError, match=r"HF_HUB_OFFLINE is set.*file:PATH"):
        resolve("timm:test_vit.r160_in1k")


@pytest.mark.parametrize("name", SMALL)
def test_a_repository_in_timms_format_gives_the_tokens_of_its_model(
    fake: FakeHub, tmp_path: Path, name: str
) -> None:
    model = drawn(name, num_classes=7, **SMALL[name])
    pushed(fake, "someone/model", model, tmp_path / "pushed")
    given = resolve("hf:someone/model")
    size = given.config["image_size"]
    images = torch.randn(1, 3, size, size)
    with torch.no_grad():
        ours = tokens_of(given, images).layers[0][1]
        features = model.forward_features(images)
    if (
        hasattr(load_encoder(given.path).backbone, "layout")
        and not load_encoder(given.path).backbone.layout.inside
    ):
        expected = (
            features.flatten(2).transpose(1, 2) if features.ndim == 4 else features[:, -ours.shape[1] :]
        )
        assert_close(ours, expected)
    else:
        with torch.no_grad():
            patches = tokens_of(given, images).patches
        expected = features.flatten(1, 2) if features.ndim == 4 else features[:, -patches.shape[1] :]
        assert_close(patches, expected)
    assert given.label == "hf:someone/model"
    assert given.release["labels"] is True


def test_what_nobody_says_to_be_free_of_labels_counts_as_told_by_them(fake: FakeHub, tmp_path: Path) -> None:
    pushed(fake, "someone/encoder", drawn("test_resnet", num_classes=0), tmp_path / "pushed")
    release = resolve("hf:someone/encoder").release
    assert (release["external"], release["labels"], release["learned_from"]) == ("labels", False, "not known")


@pytest.mark.parametrize(
    ("architecture", "tag", "classes", "expected"),
    [
        ("vit_base_patch16_224", "mae", 0, ("mae", "none", False)),
        ("hiera_base_224", "mae", 0, ("hiera", "none", False)),
        ("hiera_base_224", "mae_in1k_ft_in1k", 1000, ("timm", "labels", True)),
        ("convnextv2_base", "fcmae", 0, ("fcmae", "none", False)),
        ("convnextv2_base", "fcmae_ft_in1k", 1000, ("timm", "labels", True)),
        ("eva02_base_patch14_224", "mim_in22k", 0, ("eva02", "teacher", False)),
        ("vit_base_patch16_clip_224", "openai", 512, ("timm", "teacher", False)),
        ("vit_base_patch16_clip_224", "openai_ft_in1k", 1000, ("timm", "labels", True)),
        ("vit_base_patch16_siglip_224", "webli", 0, ("timm", "teacher", False)),
        ("convnext_base", "clip_laion2b", 640, ("timm", "teacher", False)),
        ("aimv2_large_patch14_224", "apple_pt", 0, ("timm", "teacher", False)),
        ("beit_base_patch16_224", "in22k_ft_in22k", 21841, ("timm", "labels", True)),
        ("vit_base_patch16_224", "orig_in21k", 0, ("timm", "labels", True)),
        ("swin_tiny_patch4_window7_224", "ms_in1k", 1000, ("timm", "labels", True)),
        ("resnet50", "", 0, ("timm", "labels", False)),
    ],
)
def test_what_weights_of_timm_were_told(architecture: str, tag: str, classes: int, expected: Any) -> None:
    found = told(architecture, tag, classes)
    assert (found.method, found.external, found.labels) == expected


def test_no_name_of_timm_without_a_classifier_is_taken_for_free_of_labels_unknowingly() -> None:
    """Every label-free claim is about weights that timm knows, and about none with a classifier."""
    free = set()
    for name in timm.list_pretrained():
        architecture, _, tag = name.partition(".")
        classes = timm.get_pretrained_cfg(name).num_classes
        if told(architecture, tag, classes).external == "none":
            free.add(tag)
            assert classes == 0 or tag == "fb_dino", name
    assert {"mae", "dino", "fcmae", "lvd142m", "in1k_ijepa"} <= free


def test_weights_without_a_last_norm_are_read_without_one(fake: FakeHub, tmp_path: Path) -> None:
    """timm loads the files of ConvNeXt V2's pre-training unchecked; what they lack would stay as it is."""
    model = drawn("convnextv2_atto", num_classes=0)
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("head.norm")}
    save_file(state, tmp_path / "model.safetensors")
    fake.add("timm/convnextv2_atto.fcmae", {"model.safetensors": tmp_path / "model.safetensors"})
    given = resolve("timm:convnextv2_atto.fcmae")
    assert given.config["final_norm"] is False
    assert set(given.release["fresh"]) == {"head.norm.weight", "head.norm.bias"}
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = model.forward_features(images).flatten(2).transpose(1, 2)
        assert_close(tokens_of(given, images).patches, expected)
    del state["stages.0.blocks.0.mlp.fc1.weight"]
    save_file(state, tmp_path / "model.safetensors")
    broken = fake.add("timm/convnextv2_pico.fcmae", {"model.safetensors": tmp_path / "model.safetensors"})
    assert broken.is_dir()
    with pytest.raises(UserError, match="pico"):
        resolve("timm:convnextv2_pico.fcmae")


def test_a_tensor_that_timm_would_leave_as_initialised_is_refused(fake: FakeHub, tmp_path: Path) -> None:
    state = drawn("convnextv2_atto", num_classes=0).state_dict()
    del state["stages.0.blocks.0.mlp.fc1.weight"]
    save_file(state, tmp_path / "model.safetensors")
    fake.add("timm/convnextv2_atto.fcmae", {"model.safetensors": tmp_path / "model.safetensors"})
    with pytest.raises(UserError, match=r"lacks stages\.0\.blocks\.0\.mlp\.fc1\.weight"):
        resolve("timm:convnextv2_atto.fcmae")


def test_a_broken_tensor_is_named(fake: FakeHub, tmp_path: Path) -> None:
    state = drawn("test_resnet", num_classes=0).state_dict()
    state["conv1.0.weight" if "conv1.0.weight" in state else "conv1.weight"].view(-1)[0] = torch.nan
    save_file(state, tmp_path / "model.safetensors")
    fake.add(
        "a/b",
        {"model.safetensors": tmp_path / "model.safetensors", "config.json": {"architecture": "test_resnet"}},
    )
    with pytest.raises(UserError, match=r"tensor 'conv1.*NaN"):
        resolve("hf:a/b")


def test_a_pickle_in_a_repository_does_not_run(fake: FakeHub, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"state_dict": Trap()}, tmp_path / "pytorch_model.bin")
    fake.add(
        "a/trap",
        {"pytorch_model.bin": tmp_path / "pytorch_model.bin", "config.json": {"architecture": "test_resnet"}},
        absent=("model.safetensors",),
    )
    with pytest.raises(UserError):
        resolve("hf:a/trap")
    assert not (tmp_path / "ran").exists()


def test_a_pickle_of_tensors_is_read_like_safetensors(fake: FakeHub, tmp_path: Path) -> None:
    model = drawn("test_resnet", num_classes=3)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    config = {"architecture": "test_resnet", "num_classes": 3, "pretrained_cfg": {"num_classes": 3}}
    fake.add(
        "a/old",
        {"pytorch_model.bin": tmp_path / "pytorch_model.bin", "config.json": config},
        absent=("model.safetensors",),
    )
    given = resolve("hf:a/old")
    images = torch.randn(1, 3, given.config["image_size"], given.config["image_size"])
    with torch.no_grad():
        expected = model.forward_features(images).flatten(2).transpose(1, 2)
        assert_close(tokens_of(given, images).patches, expected)


def test_weights_that_timm_knows_by_an_address_are_fetched_from_there(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("MIMBENCH_CACHE", str(tmp_path))
    model = drawn("test_resnet", num_classes=3)
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, tmp_path / "saved.pth")
    with serving() as web:
        settings = {
            "url": web.put("/resnet.pth", (tmp_path / "saved.pth").read_bytes()),
            "num_classes": 3,
            "input_size": (3, 64, 64),
            "mean": (0.1, 0.2, 0.3),
        }
        weights = TimmWeights("hf:a/b", "test_resnet", "", settings, {}, None)
        with pytest.raises(UserError, match=r"timm cannot load resnet\.pth into test_resnet"):
            convert(weights, tmp_path / "encoder.safetensors")
        torch.save(model.state_dict(), tmp_path / "saved.pth")
        settings["url"] = web.put("/flat.pth", (tmp_path / "saved.pth").read_bytes())
        convert(weights, tmp_path / "encoder.safetensors")
    encoder = load_encoder(tmp_path / "encoder.safetensors")
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model.forward_features(images).flatten(2).transpose(1, 2)
        assert_close(encoder.backbone.encode(images).patches, expected)
    assert encoder.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_an_encoder_of_ours_in_a_repository_is_taken_as_it_is(fake: FakeHub, tmp_path: Path) -> None:
    backbone = build_backbone("vit_micro_patch4", 16)
    metadata = {"backbone_config": backbone.config, "mean": [0.5] * 3, "std": [0.5] * 3, "method": "mae"}
    save_weights(tmp_path / "encoder.safetensors", backbone, metadata)
    folder = fake.add(
        "me/mine", {"encoder.safetensors": tmp_path / "encoder.safetensors"}, "v1", absent=("config.json",)
    )
    for text in ("hf:me/mine@v1", "hf:me/mine@v1:encoder.safetensors"):
        given = resolve(text)
        assert given.path == folder / "encoder.safetensors"
        assert (given.method, given.label) == ("mae", text)


TRANSFORMERS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "mae": (transformers_mae.PROOFS, "whole images", {"model_type": "vit_mae", "intermediate_size": 192}),
    "beit": (transformers_beit.PROOFS, "whole images", {"model_type": "beit", "intermediate_size": 192}),
    "dinov2": (transformers_vit.PROOFS, "dinov2", {"model_type": "dinov2", "mlp_ratio": 4}),
}


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_a_repository_of_transformers_is_read_by_its_settings(
    fake: FakeHub, tmp_path: Path, family: str
) -> None:
    proofs, name, more = TRANSFORMERS[family]
    proof = proofs[name]()
    built = find_origin(proof.entry.origin).config(proof.entry)
    config = {
        "hidden_size": built["embed_dim"],
        "num_hidden_layers": built["depth"],
        "num_attention_heads": built["num_heads"],
        "patch_size": int(built["name"].rpartition("patch")[2]),
        "image_size": built["image_size"],
        **more,
    }
    if "mlp_ratio" in built:
        config["intermediate_size"] = int(built["mlp_ratio"] * built["embed_dim"])
    save_file({k: v.contiguous() for k, v in proof.content.items()}, tmp_path / "model.safetensors")
    files = {"model.safetensors": tmp_path / "model.safetensors", "config.json": config}
    half = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    fake.add(f"someone/{family}", {**files, "preprocessor_config.json": half})
    given = resolve(f"hf:someone/{family}")
    backbone = load_encoder(given.path).backbone.double()
    with torch.no_grad():
        assert_close(backbone.encode(proof.images).patches, proof.patches, rtol=0, atol=1e-5)
    assert given.metadata["mean"] == [0.5, 0.5, 0.5]
    assert (given.method, given.release["external"], given.release["learned_from"]) == (
        family,
        "labels",
        "not known",
    )


def test_a_repository_of_the_catalogue_is_known_for_what_it_is(fake: FakeHub, tmp_path: Path) -> None:
    """Without a look at its settings, and with a wrong file refused in the entry's name."""
    save_file({"stray": torch.zeros(2)}, tmp_path / "model.safetensors")
    mirror = next(m for m in find_entry("beit@vit_base").mirrors if m.origin == "transformers_beit")
    repo, _, file = mirror.url.removeprefix("hf:").rpartition("/")
    fake.add(repo, {file: tmp_path / "model.safetensors"})
    with pytest.raises(UserError, match=r"read as beit@vit_base \(transformers_beit layout\)"):
        resolve(f"hf:{repo}")


def test_any_other_repository_is_named_for_what_it_is(fake: FakeHub, tmp_path: Path) -> None:
    fake.add("a/bert", {"config.json": {"model_type": "bert", "architectures": ["BertModel"]}})
    fake.add("a/timm", {"config.json": {"architecture": "resnet_of_tomorrow"}})
    fake.add("a/empty", {}, absent=("config.json", "encoder.safetensors"))
    save_file({"weight": torch.zeros(2)}, tmp_path / "weights.safetensors")
    fake.add("a/file", {"weights.safetensors": tmp_path / "weights.safetensors"}, absent=("config.json",))
    for text, said in (
        ("hf:a/bert", "transformers of the kind bert"),
        ("hf:a/timm", "resnet_of_tomorrow, which timm"),
        ("hf:a/empty", "neither a config.json"),
        ("hf:a/file:weights.safetensors", "was not written by mimbench"),
        ("hf:a/nowhere", "HF_HUB_OFFLINE is set"),
        ("hf:nowhere", "names no repository"),
        ("timm:vit_tinny", "no model 'vit_tinny'"),
        ("timm:vit_base_patch16_224.nothing", "no weights for vit_base_patch16_224.nothing; name one of"),
    ):
        with pytest.raises(UserError, match=said):
            resolve(text)
