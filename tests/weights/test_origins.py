"""Every family of released files: our encoder gives the reference's tokens, and nothing is lost unnamed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mimbench import registry
from mimbench.checkpoint import load_encoder
from mimbench.errors import UserError
from mimbench.weights.convert import Converted, convert

from .proof import Proof, all_proofs

ALL = all_proofs()
CASES = [
    pytest.param(make, id=f"{family}/{name}")
    for family, proofs in ALL.items()
    for name, make in proofs.items()
]


def _convert(proof: Proof, folder: Path, content: Any = None) -> Converted:
    source = folder / "official.pth"
    torch.save(proof.content if content is None else content, source)
    return convert(source, proof.entry, folder / "encoder.safetensors")


@pytest.mark.parametrize("make", CASES)
def test_tokens_are_the_reference_s(make, tmp_path: Path) -> None:
    proof = make()
    encoder = load_encoder(_convert(proof, tmp_path).path)
    with torch.no_grad():
        ours = encoder.backbone.double().encode(proof.images, mask=proof.mask, fill=proof.fill)
    close = {"rtol": 0, "atol": proof.tolerance}
    assert proof.patches.std() > 0.1, "tokens so alike that any would pass"
    torch.testing.assert_close(ours.patches, proof.patches, **close)
    if proof.cls is None:
        assert ours.cls is None
    else:
        torch.testing.assert_close(ours.cls, proof.cls, **close)
    assert encoder.mean.flatten().tolist() == pytest.approx(list(proof.entry.mean))
    assert encoder.std.flatten().tolist() == pytest.approx(list(proof.entry.std))


def _holder(content: Any, names: set[str]) -> dict[str, Tensor]:
    """The innermost dict of a file's content that holds the tensors ``names``."""
    if isinstance(content, dict):
        if names <= content.keys():
            return content
        for inner in content.values():
            if found := _holder(inner, names):
                return found
    return {}


def _copied(content: Any) -> Any:
    return {k: _copied(v) for k, v in content.items()} if isinstance(content, dict) else content


@pytest.mark.parametrize("make", CASES)
def test_no_tensor_is_lost_added_or_broken_unnoticed(make, tmp_path: Path) -> None:
    proof = make()
    used = _convert(proof, tmp_path).used
    victim = used[len(used) // 2]

    def expect(change, *said: str | tuple[str, ...]) -> None:
        """said: what the message has, one of several where it is a tuple."""
        content = _copied(proof.content)
        change(_holder(content, set(used)))
        with pytest.raises(UserError) as raised:
            _convert(proof, tmp_path, content)
        for words in said:
            anyway = (words,) if isinstance(words, str) else words
            assert any(each in str(raised.value) for each in anyway), str(raised.value)

    # Of a tensor that is renamed our name is missed, of one that is made of several the official one.
    expect(lambda state: state.pop(victim), ("has nothing for the encoder's", f"lacks {victim}"))
    expect(lambda state: state.update(stray_tensor=torch.zeros(3)), "stray_tensor")
    broken = proof_of(victim, proof, used).clone()
    broken.view(-1)[0] = torch.nan
    expect(lambda state: state.update({victim: broken}), victim, "NaN")
    expect(lambda state: state.update({victim: torch.zeros(5, 7, 1, 2)}), victim)


def proof_of(name: str, proof: Proof, used: tuple[str, ...]) -> Tensor:
    return _holder(proof.content, set(used))[name]


def test_every_family_has_a_proof() -> None:
    assert registry.origins().keys() == ALL.keys()


def test_every_entry_names_a_family_and_a_backbone_that_there_are() -> None:
    from mimbench.weights.entries import entries

    backbones: dict[str, Any] = {}  # by configuration, as many entries share one
    for entry in entries().values():
        for key in dict.fromkeys([entry.origin, *(m.origin for m in entry.mirrors if m.origin)]):
            config = registry.find_origin(key).config(entry)
            if (same := repr(sorted(config.items()))) not in backbones:
                with torch.device("meta"):
                    backbones[same] = registry.build_backbone(**config)
            backbone = backbones[same]
            assert backbone.embed_dim > 0, entry.name
            if "cls" in entry.readout.token:
                assert backbone.config.get("cls_token", False), f"{entry.name} reads a class token"
