"""What every method must hold, run over all of the registry: whoever joins the zoo joins these tests."""

from __future__ import annotations

import inspect
import re
from copy import deepcopy
from dataclasses import replace
from functools import cache
from typing import Any, get_args, get_origin

import pytest
import torch
from torch import Tensor

from mimbench import registry, settings
from mimbench.checkpoint import encoder_metadata, load_encoder, load_weights, save_weights
from mimbench.encoder import Encoder
from mimbench.errors import UserError
from mimbench.method import Method, Tokenizer

from . import two_processes
from .build import batch, build, digits, double, optimiser, parameters, rows, train

ALL = list(registry.methods())
TRAINED = [key for key, cls in registry.methods().items() if cls.card.recipe is not None]
TOKENIZERS = [key for key, cls in registry.methods().items() if cls.card.role == "tokenizer"]
ENCODERS = [key for key in ALL if key not in TOKENIZERS]
SETTINGS = [(key, name) for key in ALL for name in settings.defaults(registry.find_method(key))]


def features(method: Method, images: Tensor) -> Tensor:
    """What evaluations or other methods get to see of a method: all of its tokens, [B, n]."""
    if method.card.role == "tokenizer":
        assert isinstance(method, Tokenizer)
        return method.ids(images, (4, 4)).flatten(1)
    tokens = sealed(method)(images)
    return torch.cat([t.flatten(1) for t in tokens if t is not None], dim=1)


def sealed(method: Method) -> Encoder:
    """What protocols see of a method; of a copy, for sealing freezes an encoder."""
    return Encoder(deepcopy(method.product), method.card.mean, method.card.std)


@cache
def trained(key: str, n: int = 30) -> tuple[Method, list[float]]:
    """A method after a run of ``n`` steps on eight images, and its losses. Shared: not to be changed."""
    method = build(key)
    return method, whole_run(method, n)


def whole_run(method: Method, n: int = 30, lr: float = 2e-3) -> list[float]:
    """Train on eight images for a whole run of ``n`` steps; the losses."""
    optimizer = optimiser(method, lr)
    images, step = batch(method)
    steps = (replace(step, progress=i / n) for i in range(n))
    return [float(train(method, optimizer, images, s).total) for s in steps]


# The card ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ALL)
def test_a_card_without_its_facts_cannot_join(key: str) -> None:
    cls = registry.find_method(key)
    card = cls.card
    assert card.key == key
    assert re.fullmatch(r"[a-z0-9][a-z0-9_]*", key), "a key is typed on the command line"
    assert inspect.getdoc(cls)
    for fact in ("name", "paper", "masking", "target", "architecture", "objective"):
        assert getattr(card, fact).strip(), f"the card lacks its {fact}"
    assert not card.arxiv or re.fullmatch(r"\d{4}\.\d{4,5}", card.arxiv)
    assert not card.code or card.code.startswith("https://")
    assert all(value > 0 for value in card.std)
    assert (card.recipe is None) == (card.role == "floor")
    if card.recipe is not None:
        assert card.recipe.source.strip(), "where do the recipe's numbers come from?"
    if card.role == "method":
        assert card.authors
        assert card.code or card.parity in ("no official code", "own formulas")
        assert card.parity != "baseline"


@pytest.mark.parametrize("key", ALL)
def test_external_information_is_never_used_in_silence(key: str) -> None:
    cls = registry.find_method(key)
    asked = inspect.signature(cls.__init__).parameters
    assert ("num_classes" in asked) == (cls.card.external == "labels")
    assert set(cls.needs) == {name for name in asked if name.endswith(("tokenizer", "teacher"))}
    required = {name for name, default in cls.needs.items() if default is not None}
    for kind in ("tokenizer", "teacher"):
        if any(name.endswith(kind) for name in required):
            assert cls.card.external == kind or cls.card.external == "labels"
    for name in required:
        default = registry.find_method(cls.needs[name])
        assert (default.card.role == "tokenizer") == name.endswith("tokenizer")


@pytest.mark.parametrize("key", ENCODERS)
def test_a_readout_asks_only_for_tokens_that_are_there(key: str) -> None:
    method = build(key)
    encoder = sealed(method)
    parts = method.card.readout.parts
    vectors = encoder.readouts(digits(0, 3)[0], parts)
    assert all(vectors[part].ndim == 2 and len(vectors[part]) == 3 for part in parts)
    assert encoder.has_cls == (encoder(digits(0, 1)[0]).cls is not None)


# Tokens -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ALL)
def test_one_image_never_gives_two_answers(key: str) -> None:
    method = build(key, drop_path=0.3).train()
    images, _ = digits(0, 6)
    first = features(method, images)
    torch.manual_seed(1)
    assert torch.equal(first, features(method, images))
    alone = torch.cat([features(method, image[None]) for image in images])
    torch.testing.assert_close(first.float(), alone.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("key", ENCODERS)
def test_weights_come_back_as_they_were_saved(key: str, tmp_path) -> None:
    method = trained(key)[0] if key in TRAINED else build(key)
    images, _ = digits(0, 4)
    before = features(method, images)
    save_weights(
        tmp_path / "encoder.safetensors", method.product, encoder_metadata(method.product, method.card)
    )
    tokens = load_encoder(tmp_path)(images)
    assert torch.equal(before, torch.cat([t.flatten(1) for t in tokens if t is not None], dim=1))


@pytest.mark.parametrize("key", TOKENIZERS)
def test_a_tokenizer_comes_back_without_a_backbone(key: str, tmp_path) -> None:
    method = trained(key)[0]
    images, _ = digits(0, 4)
    path = tmp_path / "tokenizer.safetensors"
    save_weights(path, method, {"method": key, "config": method.config})
    loaded = registry.load_tokenizer(path)
    assert loaded.vocabulary == method.vocabulary
    for grid in ((4, 4), (2, 2), (3, 5)):
        ids = loaded.ids(images, grid)
        assert ids.shape == (4, *grid)
        assert ids.dtype == torch.int64
        assert int(ids.min()) >= 0
        assert int(ids.max()) < loaded.vocabulary
        assert torch.equal(ids, method.ids(images, grid))


@pytest.mark.parametrize("key", TRAINED)
def test_a_method_goes_on_from_its_saved_state(key: str, tmp_path) -> None:
    method = trained(key)[0]
    save_weights(tmp_path / "method.safetensors", method, {})
    other = build(key, seed=7)
    load_weights(other, tmp_path / "method.safetensors")
    images, step = batch(method)
    # Whoever read its features has put the encoder in eval mode and frozen it, and torch takes another
    # attention where gradients are wanted.
    with torch.no_grad():
        assert torch.equal(method.train()(images, step).total, other.train()(images, step).total)


@pytest.mark.parametrize("key", TRAINED)
def test_a_run_that_was_killed_ends_as_if_it_had_not_been(key: str) -> None:
    """All that outlives a step is in the state: averages, memories, stages, centres. Bit for bit."""
    method = build(key)
    optimizer = optimiser(method)
    images, step = batch(method)
    for progress in (0.1, 0.4):
        train(method, optimizer, images, replace(step, progress=progress))
    other = build(key, seed=7)
    other.load_state_dict(deepcopy(method.state_dict()))
    resumed = optimiser(other)
    resumed.load_state_dict(deepcopy(optimizer.state_dict()))
    for progress in (0.5, 0.7, 0.9):
        later = replace(step, progress=progress)
        undisturbed = train(method, optimizer, images, later)
        assert same(dict(train(other, resumed, images, later)), dict(undisturbed))
    assert same(dict(other.state_dict()), dict(method.state_dict()))


# Learning ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", TRAINED)
def test_thirty_steps_on_eight_images_lower_the_loss(key: str) -> None:
    """Or, where targets move with training (centred ones start easy), lower than without learning."""
    losses = trained(key)[1]
    if sum(losses[-3:]) < 0.9 * sum(losses[:3]):
        return
    still = whole_run(build(key), lr=0.0)
    assert any(loss != still[0] for loss in still), f"the targets stand still and {losses} do not fall"
    assert sum(losses[-3:]) < 0.9 * sum(still[-3:]), (losses, still)


@pytest.mark.parametrize("key", TRAINED)
def test_gradients_reach_what_learns_and_nothing_else(key: str) -> None:
    method = build(key)
    optimizer = optimiser(method)
    images, step = batch(method)
    reached: set[str] = set()
    for _ in range(3):  # a head may start at zero, which holds back what lies below for one step
        train(method, optimizer, images, step)
        reached |= {name for name, p in parameters(method).items() if p.grad is not None and p.grad.any()}
    learning = {name for name, p in parameters(method).items() if p.requires_grad}
    assert reached == learning
    assert any(name.startswith("encoder.") for name in reached)


@pytest.mark.parametrize("key", TRAINED)
def test_bfloat16_stays_close_to_float32(key: str) -> None:
    method = build(key)
    images, step = batch(method)
    exact = method(images, step)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = method(images, step)
    assert exact.keys() == rounded.keys()
    for name, loss in rounded.items():
        assert loss.dtype == torch.float32, f"{name} is summed up in half precision"
        torch.testing.assert_close(loss, exact[name], rtol=0.03, atol=0.003)
    rounded.total.backward()
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)


@pytest.mark.parametrize("key", [key for key in TRAINED if key not in TOKENIZERS])
def test_a_short_run_does_not_collapse_the_features(key: str) -> None:
    """Images keep apart, and in as many directions as an untrained encoder has, give or take half.

    What collapsed stays so. A method that predicts features may first fit their mean over images, which
    looks the same after thirty steps; then a run of ninety decides.
    """
    images, _ = digits(100, 64)
    spread_before, rank_before = health(patch_tokens(build(key), images))
    found = []
    for n in (30, 90):
        spread, rank = health(patch_tokens(trained(key, n)[0], images))
        found.append((n, spread / spread_before, rank / rank_before))
        if spread > 0.25 * spread_before and rank > 0.4 * rank_before:
            return
    pytest.fail(f"(steps, spread, directions) over those before: {found}")


def patch_tokens(method: Method, images: Tensor) -> Tensor:
    return sealed(method)(images).patches.flatten(1, 2)


def health(tokens: Tensor) -> tuple[float, float]:
    """Of [B, N, D]: how much of the squared length tells images apart, and in how many directions.

    The first is the share that lies off the mean over images; the second the effective rank of what lies
    off it, exp of the spectrum's entropy (Roy & Vetterli 2007).
    """
    centred = (tokens - tokens.mean(0)).flatten(0, 1).double()
    spectrum = torch.linalg.svdvals(centred).square()
    spread = spectrum.sum() / tokens.double().square().sum()
    return float(spread), float(torch.special.entr(spectrum / spectrum.sum()).sum().exp())


def test_the_collapse_test_sees_collapse() -> None:
    images, _ = digits(100, 64)
    tokens = patch_tokens(build("random"), images)
    spread, rank = health(tokens)
    same_for_all = tokens.mean(0) + 0.01 * tokens
    one_direction = tokens.mean(0) + (tokens - tokens.mean(0)).norm(dim=-1, keepdim=True)
    assert health(same_for_all)[0] < 0.25 * spread
    assert health(one_direction)[1] < 0.4 * rank


# Random numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", TRAINED)
def test_draws_hang_on_the_sample_and_not_on_the_process(key: str) -> None:
    """Two processes with half of a batch each see the loss that one process with all of it sees.

    Nor does the order of the batch or the state of torch's generator matter: every draw of a method,
    drop path included, comes out of the samples' keys.
    """
    whole = build(key, drop_path=0.3)
    images, step = batch(whole)
    expected = whole(images, step)

    torch.manual_seed(99)
    shuffled = build(key, drop_path=0.3)(*rows(images, step, torch.randperm(8)))
    assert_close(shuffled, expected)
    if whole.couples_batch:  # then only processes that talk to each other can agree: see the next test
        return
    halves = [build(key, drop_path=0.3)(*rows(images, step, half)) for half in HALVES]
    assert_close({name: torch.stack([h[name] for h in halves]).mean() for name in expected}, expected)


HALVES = (slice(0, 4), slice(4, 8))
COUPLED = [key for key in TRAINED if registry.find_method(key).couples_batch]


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, loss in expected.items():
        torch.testing.assert_close(found[name], loss, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not COUPLED, reason="no method couples the images of a batch")
def test_two_processes_see_the_loss_and_gradients_of_one(tmp_path) -> None:
    """Contrast and batch statistics reach over processes: half of the batch each, same numbers."""
    # Once for all methods: starting processes takes longer than what they do.
    torch.multiprocessing.spawn(two_processes.half_batches, (str(tmp_path), COUPLED), nprocs=2)
    pair = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for key in COUPLED:
        method = build(key).double()  # in float32, batch statistics magnify what is but rounding
        losses = method(*double(*batch(method)))
        losses.total.backward()
        seen = [found[key] for found in pair]
        assert_close({name: (seen[0][0][name] + seen[1][0][name]) / 2 for name in losses}, dict(losses))
        for name, parameter in parameters(method).items():
            if parameter.grad is not None:
                mean = (seen[0][1][name] + seen[1][1][name]) / 2
                torch.testing.assert_close(mean, parameter.grad, rtol=1e-6, atol=1e-9, msg=f"{key}: {name}")


# Settings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "name"), SETTINGS)
def test_every_setting_moves_something(key: str, name: str) -> None:
    usual = behaviour(build(key))
    assert same(usual, behaviour(build(key))), "runs of equal settings differ: this test could not fail"
    tried = []
    for value in alternatives(registry.find_method(key), name):
        try:
            method = build(key, **{name: value})
        except UserError:  # outside of the range, or it does not go with the small backbone
            continue
        tried.append(value)
        if not same(usual, behaviour(method)):
            return
    assert tried, f"found no allowed value of {key}.{name} besides its default"
    pytest.fail(f"{key}.{name} has no effect: the default and {tried} train alike")


def behaviour(method: Method) -> dict[str, Tensor]:
    """Everything a setting can change: losses of four steps, and the state or the tokens after them."""
    if method.card.recipe is None:
        return {"features": features(method, digits(0, 4)[0])}
    optimizer = optimiser(method)
    seen = {}
    for progress in (0.0, 0.3, 0.6, 0.9):
        images, step = batch(method, n=4, progress=progress)
        losses = train(method, optimizer, images, step)
        seen |= {f"{name} at {progress}": loss for name, loss in losses.items()}
    return seen | {"features": features(method, digits(0, 4)[0])} | dict(method.state_dict())


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def alternatives(cls: type[Method], name: str) -> list[Any]:
    """Other values of a setting, some of which its range may forbid."""
    default = settings.defaults(cls)[name]
    annotation = settings.model_of(cls).model_fields[name].annotation
    literals = [v for part in (annotation, *get_args(annotation)) for v in literal_values(part)]
    if isinstance(default, bool):
        return [not default]
    if isinstance(default, int | float):
        near = [default / 2, default * 1.5, (default + 1) / 2, default / 20, default + 0.3, default * 0.7]
        whole = [default + 1, default * 2, default - 1, default // 4]
        return [v for v in (whole if isinstance(default, int) else near) if v != default] + literals
    if literals:
        return [v for v in literals if v != default]
    if isinstance(default, str):  # the key of a method
        return ["beit", "ibot"]
    return [1, 2, 4, 8, 0.5, 0.25, True, False, -1, [-1]]  # a default of None says nothing of the type


def literal_values(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if str(get_origin(annotation)) == "typing.Literal" else ()
