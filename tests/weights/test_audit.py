"""The audit must tell sound weights from untrained, collapsed and broken ones, and mean what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mimbench.checkpoint import encoder_metadata, save_weights
from mimbench.encoder import Encoder
from mimbench.errors import UserError
from mimbench.registry import find_method
from mimbench.spec import HALF, Readout
from mimbench.weights.audit import audit, look, photographs, untrained
from mimbench.weights.examined import examine

CONFIG = {"name": "vit_micro_patch8", "image_size": 32, "init": "beit", "layer_scale": 0.5}
MEAN = Readout(token="mean")


def trained(seed: int = 0) -> Encoder:
    """An encoder far from its initialisation."""
    encoder = untrained(CONFIG, HALF, HALF, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in encoder.backbone.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return encoder


def test_photographs_are_the_same_everywhere_and_differ_from_each_other() -> None:
    images = photographs(32)
    assert torch.equal(images, photographs(32))
    assert images.shape == (12, 3, 32, 32)
    assert 0 <= images.min() < 0.1
    assert 0.9 < images.max() <= 1
    assert torch.pdist(images.flatten(1)).min() > 1


def test_figures_are_their_definitions() -> None:
    encoder = trained()
    seen, found = look(encoder, MEAN), audit(encoder, MEAN)
    tokens = seen.patches.double().numpy()
    unit = tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)
    places = np.mean([((image - image.mean(0)) ** 2).sum(1).mean() for image in unit])
    assert found.own.place_variance == pytest.approx(places)
    means = tokens.mean(1)
    means /= np.linalg.norm(means, axis=-1, keepdims=True)
    cosines = means @ means.T
    assert found.own.image_variance == pytest.approx(1 - cosines.mean(), rel=1e-5)
    flat = tokens.reshape(-1, tokens.shape[-1])
    values = np.linalg.svd(flat - flat.mean(0), compute_uv=False)
    shares = values / values.sum() + 1e-7
    assert found.own.token_rank == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-5)
    assert found.own.norm_max == pytest.approx(np.linalg.norm(flat, axis=1).max())
    assert not found.flags
    assert not found.constant


def test_features_are_what_the_readout_says() -> None:
    encoder = trained()
    both = look(encoder, Readout(token="cls+mean")).features
    with torch.no_grad():
        tokens = encoder(photographs(32))
    expected = torch.cat([tokens.cls, tokens.patches.flatten(1, 2).mean(1)], dim=1)
    torch.testing.assert_close(both, expected, rtol=0, atol=1e-5)


def test_untrained_weights_are_found_out_whatever_their_seed() -> None:
    for seed in (0, 5):
        found = audit(untrained(CONFIG, HALF, HALF, seed), MEAN)
        assert any("never trained" in flag for flag in found.flags)
    assert found.alike == pytest.approx(found.by_chance, abs=0.1)
    assert found.by_chance < 0.9999, "two draws, not one"
    assert audit(trained(), MEAN).alike < found.by_chance


@pytest.mark.parametrize(
    ("name", "said"), [("patch_embed.proj.weight", "one feature"), ("norm.weight", "one token")]
)
def test_a_collapse_is_told(name: str, said: str) -> None:
    encoder = trained()
    state = encoder.backbone.state_dict()
    state[name].zero_()  # no image gets in; no token gets out but the bias
    found = audit(encoder, MEAN)
    assert any(said in flag for flag in found.flags)
    if state[name].ndim > 1:
        assert found.constant == (name,)


def test_tokens_that_are_not_finite_are_refused() -> None:
    encoder = trained()
    encoder.backbone.state_dict()["blocks.0.mlp.fc1.weight"].fill_(3e38)
    with pytest.raises(UserError, match="not finite"):
        audit(encoder, MEAN)


def test_doctor_looks_at_products_and_foreign_files_and_refuses_the_rest(tmp_path: Path) -> None:
    encoder = trained()
    card = find_method("simmim").card
    path = tmp_path / "mine" / "encoder.safetensors"
    path.parent.mkdir()
    save_weights(path, encoder.backbone, encoder_metadata(encoder.backbone, card))
    ours = examine(str(path.parent))
    assert ours.given.label == "file:mine"
    assert ours.given.method == "simmim"
    assert ours.size == path.stat().st_size
    assert not ours.audit.flags
    foreign = tmp_path / "foreign.pth"
    torch.save({"model": {"odd": torch.zeros(2)}}, foreign)
    with pytest.raises(UserError, match="--as"):
        examine(str(foreign))
    with pytest.raises(UserError, match="lacks pos_embed"):
        examine(str(foreign), "mae@vit_base")
    with pytest.raises(UserError, match="no weights file"):
        examine(str(tmp_path / "gone.pth"), "mae@vit_base")
    with pytest.raises(UserError, match="names no weights"):
        examine("nonsense")


def test_the_command_says_what_was_used_dropped_and_seen(tmp_path: Path, capsys) -> None:
    from mimbench.cli import app
    from mimbench.weights.convert import convert

    from .proofs.mae import whole_images

    proof = whole_images()
    source, target = tmp_path / "official.pth", tmp_path / "encoder.safetensors"
    content = {"model": {**proof.content["model"], "mask_token": torch.zeros(1, 1, 48)}}
    torch.save(content, source)
    convert(source, proof.entry, target)
    with pytest.raises(SystemExit) as ended:
        app(["doctor", "weights", str(target)])
    assert ended.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    for words in ("official.pth", "mae, version 1", "blocks.*.attn.qkv", "mask_token", "effective rank"):
        assert words in said
    assert "nothing wrong was found" in said

    with torch.no_grad():
        for name, tensor in content["model"].items():
            if name.endswith("weight") and tensor.ndim == 1:
                tensor.fill_(1)
    torch.save(content, source)
    convert(source, proof.entry, target)
    with pytest.raises(SystemExit) as ended:
        app(["doctor", "weights", str(target)])
    assert ended.value.code == 1
    assert "never trained" in " ".join(capsys.readouterr().out.split())


def test_a_released_row_s_record_holds_its_audit(tmp_path: Path) -> None:
    import mimbench
    from mimbench import records

    encoder = trained()
    path = tmp_path / "mine" / "encoder.safetensors"
    path.parent.mkdir()
    save_weights(path, encoder.backbone, encoder_metadata(encoder.backbone, find_method("mae").card))
    out = tmp_path / "out"
    mimbench.run(f"mine=file:{path}", protocol="none", image_size=32, out=out, baselines=False)
    (record,) = records.read_folder(out)
    card = find_method("mae").card
    again = audit(Encoder(encoder.backbone, card.mean, card.std), card.readout)
    assert record.facts["audit"]["own"] == pytest.approx(vars(again.own), rel=1e-4)
    assert record.facts["audit"]["alike"] == pytest.approx(again.alike, rel=1e-4)
