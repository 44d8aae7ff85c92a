"""MAGE's files beyond tokens of images: official latents of given codes, and the tokenizer alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from method_zoo.parts.tokenizers import build_tokenizer, describe, load_tokenizer, token_ids, vqgan
from mimbench.checkpoint import load_encoder
from mimbench.errors import UserError
from mimbench.weights.convert import convert

from .proof import part, record, small
from .proofs._pyramids import randomised
from .proofs.mage import DIM, TOKENIZER, codes_of, official, tokenizer_shapes


def test_given_codes_have_the_official_latent(tmp_path: Path) -> None:
    """Of a masked pre-training pass, whose record does without the VQGAN: another stands in its place."""
    run = record("mage", "")
    config, state = run.config, part(run, "model")
    tokenizer = {**TOKENIZER, "vocabulary": config["codebook"]}
    shapes = tokenizer_shapes() | {"vqgan.quantize.embedding.weight": (config["codebook"], DIM)}
    state |= randomised({name: torch.empty(shape) for name, shape in shapes.items()})
    sizes = {name: config[name] for name in ("embed_dim", "depth", "num_heads", "mlp_ratio")}
    options = {**sizes, "tokenizer": {"method": "vqgan", "config": tokenizer}}
    torch.save({"model": state}, tmp_path / "mage.pth")
    entry = small("mage@vit_base", options=options)
    path = convert(tmp_path / "mage.pth", entry, tmp_path / "encoder.safetensors").path
    backbone = load_encoder(path).backbone.double()
    hidden, dropped = (run.outputs[name][:, 1:].bool() for name in ("all_mask", "drop_mask"))
    found = backbone.encode_ids(run.inputs["token_ids"], hidden, dropped)
    latent = torch.cat([found.cls.unsqueeze(1), found.patches], dim=1)
    torch.testing.assert_close(latent, run.outputs["latent"].double(), rtol=1e-5, atol=1e-5)


def tokenizer_alone() -> dict[str, torch.Tensor]:
    start = "vqgan."
    return {k.removeprefix(start): v for k, v in official().items() if k.startswith(start)}


@pytest.mark.parametrize("wrapped", [True, False])
def test_the_published_tokenizer_is_one_that_methods_can_learn_from(wrapped: bool, tmp_path: Path) -> None:
    """Its file, decoder and all, as Lightning wraps it or bare; its sizes are read off it."""
    state, path = official(), tmp_path / "vqgan.ckpt"
    own = tokenizer_alone()
    torch.save({"state_dict": own, "epoch": 3} if wrapped else own, path)
    tokenizer = load_tokenizer(path)
    assert describe(tokenizer)["config"] == {**TOKENIZER, "multipliers": [1, 1, 2, 2, 4]}
    images = torch.rand(2, 3, 64, 64)
    expected = codes_of(state, images.double())
    assert torch.equal(token_ids(tokenizer.double(), images, (4, 4)), expected)
    again = build_tokenizer(describe(tokenizer)).double()
    again.load_state_dict(tokenizer.state_dict())
    assert torch.equal(token_ids(again, images, (4, 4)), expected)
    assert token_ids(tokenizer, images, (6, 6)).shape == (2, 36), "images are resized to the grid"


def test_many_images_take_little_memory_and_get_the_tokens_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = build_tokenizer({"method": "vqgan", "config": TOKENIZER})
    tokenizer.load_state_dict({k: v for k, v in tokenizer_alone().items() if not k.startswith("decoder.")})
    images, sizes = torch.rand(5, 3, 64, 64), []
    monkeypatch.setattr(vqgan, "LARGEST", 2 * 32 * 64 * 64)
    tokenizer.encoder.register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])))
    found = token_ids(tokenizer, images, (4, 4))
    assert sizes == [2, 2, 1]
    assert torch.equal(found, torch.cat([token_ids(tokenizer, one[None], (4, 4)) for one in images]))


@pytest.mark.parametrize("lacks", ["encoder.mid.block_2.conv1.weight", "encoder.down.1.block.0.conv1.weight"])
def test_a_tokenizer_that_lacks_a_tensor_is_refused(lacks: str, tmp_path: Path) -> None:
    own = tokenizer_alone()
    del own[lacks]
    torch.save(own, tmp_path / "vqgan.ckpt")
    with pytest.raises(UserError, match=re.escape(lacks)):
        load_tokenizer(tmp_path / "vqgan.ckpt")
