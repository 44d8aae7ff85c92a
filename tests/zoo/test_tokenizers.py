"""Tokenizers: the codebook's mathematics and health, OpenAI's file format, and files that attack."""

from __future__ import annotations

import math
import pickle
import sys
from collections import OrderedDict
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from method_zoo.parts.frozen import Borrowed
from method_zoo.parts.tokenizers import load_tokenizer
from method_zoo.parts.tokenizers.dalle import DalleEncoder
from method_zoo.parts.tokenizers.vq import Codebook, SphericalCodebook, conv_decoder, conv_encoder, strides
from mimbench import rng
from mimbench.checkpoint import save_weights
from mimbench.errors import UserError
from mimbench.method import Step, Tokenizer

from . import two_processes
from .build import batch, build, digits, normalised, optimiser, train

# The codebook ---------------------------------------------------------------------------------------


def vectors(n: int, dim: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, generator=generator), torch.rand(n, generator=generator)


def settled(size: int = 8, dim: int = 6, **options) -> Codebook:
    """A codebook whose codes have all been in use."""
    codebook = Codebook(size, dim, **options)
    codebook.idle.zero_()
    codebook.counts.fill_(1.0)
    codebook.sums.copy_(codebook.codes)
    return codebook


def test_every_vector_gets_its_nearest_code() -> None:
    codebook, (z, _) = Codebook(32, 6), vectors(500)
    expected = torch.cdist(z.double(), codebook.codes.double()).argmin(1)
    assert torch.equal(codebook.nearest(z), expected)
    assert torch.equal(codebook(z).ids, expected)
    torch.testing.assert_close(codebook(z).codes, codebook.codes[expected])


def test_the_gradient_passes_straight_through_and_commitment_pulls() -> None:
    codebook, (z, _) = Codebook(32, 6), vectors(10)
    z.requires_grad_()
    weights = torch.randn(10, 6)
    found = codebook(z)
    (straight,) = torch.autograd.grad((found.codes * weights).sum(), z, retain_graph=True)
    assert torch.equal(straight, weights)
    (pull,) = torch.autograd.grad(found.commitment, z)
    torch.testing.assert_close(pull, 2 * (z - codebook.codes[found.ids]).detach() / z.numel())


def test_codes_follow_the_papers_moving_average() -> None:
    """Equations (6) to (8) of arXiv:1711.00937, written out code by code."""
    decay = 0.05  # below the young average's rate, so that it holds from the first step on
    codebook = settled(decay=decay)
    n, m, codes = torch.ones(8), codebook.codes.clone(), codebook.codes.clone()
    for seed in range(4):
        z, scores = vectors(40, seed=seed)
        ids = torch.cdist(z, codes).argmin(1)
        codebook(z, scores)
        codebook.update()
        for i in range(8):
            mine = z[ids == i]
            n[i] = decay * n[i] + (1 - decay) * len(mine)
            m[i] = decay * m[i] + (1 - decay) * mine.sum(0)
            codes[i] = m[i] / n[i]
        torch.testing.assert_close(codebook.codes, codes)


def test_spherical_codes_follow_the_codes_published_rule() -> None:
    """The rule of BEiT v2's code, written out code by code; similarity decides, not length."""
    decay = 0.05
    codebook = SphericalCodebook(8, 6, decay=decay)
    codebook.idle.zero_()
    codes = codebook.codes.clone()
    torch.testing.assert_close(codes.norm(dim=1), torch.ones(8))
    for seed in range(4):
        z, scores = vectors(40, seed=seed)
        z *= torch.linspace(0.1, 10, 40)[:, None]
        ids = torch.stack([F.cosine_similarity(v[None], codes) for v in z]).argmax(1)
        found = codebook(z, scores)
        assert torch.equal(found.ids, ids)
        unit = z / z.norm(dim=1, keepdim=True)
        torch.testing.assert_close(found.commitment, (unit - codes[ids]).square().mean())
        codebook.update()
        for i in set(ids.tolist()):
            mean = unit[ids == i].mean(0)
            moved = decay * codes[i] + (1 - decay) * mean / mean.norm()
            codes[i] = moved / moved.norm()
        torch.testing.assert_close(codebook.codes, codes)


def test_a_distilled_tokenizer_does_not_carry_its_teacher_along() -> None:
    method = build("vqkd")
    teacher = method.teacher()
    carried = {t.data_ptr() for t in method.state_dict().values()} | {
        p.data_ptr() for p in method.parameters()
    }
    assert not carried & {p.data_ptr() for p in teacher.parameters()}
    again = type(method).from_config(method.config)
    assert again.state_dict().keys() == method.state_dict().keys()
    assert sum(p.numel() for p in again.parameters()) == sum(p.numel() for p in method.parameters())


def test_a_borrowed_network_goes_where_its_owner_goes() -> None:
    owner = nn.Sequential(Borrowed(nn.Linear(2, 2)), nn.Linear(2, 2))
    owner.double().train()
    borrowed = owner[0]()
    assert borrowed.weight.dtype == torch.float64
    assert not borrowed.training
    assert not borrowed.weight.requires_grad
    assert owner.state_dict().keys() == {"1.weight", "1.bias"}


def test_micro_batches_move_the_codes_like_one_batch() -> None:
    z, scores = vectors(60)
    whole, parts = settled(32, patience=1), settled(32, patience=1)
    parts.load_state_dict(whole.state_dict())
    whole(z, scores)
    for piece in (slice(0, 10), slice(10, 60)):
        parts(z[piece], scores[piece])
    whole.update()
    parts.update()
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], tensor, msg=name)


def test_an_idle_code_moves_to_a_badly_served_vector() -> None:
    codebook = settled(4, 2, patience=3)
    codebook.codes.copy_(torch.tensor([[0.0, 0], [1, 0], [50, 50], [60, 60]]))
    codebook.sums.copy_(codebook.codes)
    z = torch.tensor([[0.0, 0.0]] * 50 + [[1.0, 0.0]] * 50 + [[0.0, 9.0]])
    for step in range(3):
        assert not (codebook.codes == torch.tensor([0.0, 9.0])).all(1).any()
        codebook(z, rng.uniform(torch.tensor([step]), len(z), "test")[0])
        codebook.update()
    # the outlier's squared distance is all of the weight: it is what is drawn first
    assert (codebook.codes == torch.tensor([0.0, 9.0])).all(1).sum() == 1
    assert int(codebook.idle.max()) < 3


def test_a_codebook_that_is_not_training_does_not_move() -> None:
    codebook = settled().eval()
    before = codebook.codes.clone()
    codebook(*vectors(50))
    codebook.update()
    assert torch.equal(codebook.codes, before)


@pytest.mark.slow
def test_two_processes_keep_one_codebook(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(two_processes.share_codebook, (str(tmp_path),), nprocs=2)
    alone = two_processes.trained(slice(0, 60))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for name, tensor in alone.state_dict().items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], tensor, msg=name)


@pytest.mark.parametrize("patch_size", [1, 2, 4, 7, 8, 14, 16, 24])
def test_one_vector_a_patch_whatever_the_patch_size(patch_size: int) -> None:
    assert math.prod(strides(patch_size)) == patch_size
    encoder, decoder = conv_encoder(patch_size, 8, 1, 4), conv_decoder(patch_size, 8, 1, 4)
    images = torch.randn(2, 3, 3 * patch_size, 2 * patch_size)
    codes = encoder(images)
    assert codes.shape == (2, 4, 3, 2)
    assert decoder(codes).shape == images.shape


@pytest.mark.slow
@pytest.mark.parametrize("patch_size", [2, 4])
def test_a_short_training_uses_the_codebook_and_paints_digits(patch_size: int) -> None:
    """At its own rate and default settings: 150 steps of 32 digits, a tenth of the default run's images."""
    method = build("vqvae", patch_size=patch_size)
    optimizer = optimiser(method, lr=method.card.recipe.lr(64))
    images, _ = digits(0, 1280)
    for i in range(150):
        which = torch.from_numpy(rng.permutation(0, i, 1280)[:32])
        step = Step(i / 150, torch.from_numpy(rng.sample_keys(0, i, which.numpy())))
        train(method, optimizer, normalised(method, images[which]), step)

    unseen, _ = digits(1280, 400)
    side = 16 // patch_size
    counts = torch.bincount(method.ids(unseen, (side, side)).flatten(), minlength=method.vocabulary)
    shares = counts / counts.sum()
    assert (counts > 0).float().mean() > 0.6
    assert torch.special.entr(shares).sum().exp() > 0.3 * method.vocabulary
    assert method.description()["perplexity"] > 0.3 * method.vocabulary

    with torch.no_grad():
        target = normalised(method, unseen)
        losses = method.eval()(target, Step(1.0, torch.arange(len(unseen))))
    assert losses["reconstruction"] < 0.25 * target.var()


@pytest.mark.slow
def test_a_short_distillation_uses_the_codebook_and_tells_features() -> None:
    """150 steps of 32 digits; against the best that can be told without a look at the image."""
    method = build("vqkd", vocabulary=256)
    optimizer = optimiser(method, lr=1e-3)
    images, _ = digits(0, 1280)
    for i in range(150):
        which = torch.from_numpy(rng.permutation(0, i, 1280)[:32])
        step = Step(i / 150, torch.from_numpy(rng.sample_keys(0, i, which.numpy())))
        train(method, optimizer, normalised(method, images[which]), step)

    unseen, _ = digits(1280, 400)
    counts = torch.bincount(method.ids(unseen, (4, 4)).flatten(), minlength=256)
    assert (counts > 0).float().mean() > 0.6
    assert torch.special.entr(counts / counts.sum()).sum().exp() > 0.3 * 256

    with torch.no_grad():
        losses = method.eval()(normalised(method, unseen), Step(1.0, torch.arange(len(unseen))))
        target = F.normalize(method.teacher().encode(unseen).patches, dim=-1)
    same_for_all = F.normalize(target.mean((0, 1)), dim=0)
    assert losses["features"] < 0.5 * (1 - (target * same_for_all).sum(-1)).mean()


@pytest.mark.parametrize("key", ["vqvae", "vqkd"])
def test_tokens_do_not_depend_on_the_training_precision(key: str) -> None:
    method = build(key)
    optimizer, (images, step) = optimiser(method), batch(method, n=32)
    for _ in range(3):
        train(method, optimizer, images, step)
    plain, _ = digits(0, 32)
    expected = method.ids(plain, (4, 4))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(method.ids(plain, (4, 4)), expected)
    assert len(expected.unique()) > 3


# OpenAI's dVAE --------------------------------------------------------------------------------------


def official_module(vocabulary: int, width: int, blocks: int) -> nn.Module:
    """A module tree with the class names, attribute names and shapes of openai/DALL-E's encoder."""

    def named(module: str, name: str) -> type[nn.Module]:
        cls = type(name, (nn.Module,), {"__module__": module})
        setattr(sys.modules[module], name, cls)
        return cls

    conv_class = named("dall_e.utils", "Conv2d")
    block_class = named("dall_e.encoder", "EncoderBlock")
    encoder_class = named("dall_e.encoder", "Encoder")

    def conv(inputs: int, outputs: int, kernel: int) -> nn.Module:
        made = conv_class()
        made.n_in, made.n_out, made.kw, made.use_float16 = inputs, outputs, kernel, True
        made.device, made.requires_grad = torch.device("cpu"), False
        made.w = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel) / (inputs * kernel**2) ** 0.5)
        made.b = nn.Parameter(0.1 * torch.randn(outputs))
        return made

    def block(inputs: int, outputs: int) -> nn.Module:
        made, inner = block_class(), outputs // 4
        made.n_hid, made.post_gain = inner, 1 / (4 * blocks) ** 2
        made.id_path = conv(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        path = [
            ("relu_1", nn.ReLU()),
            ("conv_1", conv(inputs, inner, 3)),
            ("relu_2", nn.ReLU()),
            ("conv_2", conv(inner, inner, 3)),
            ("relu_3", nn.ReLU()),
            ("conv_3", conv(inner, inner, 3)),
            ("relu_4", nn.ReLU()),
            ("conv_4", conv(inner, outputs, 1)),
        ]
        made.res_path = nn.Sequential(OrderedDict(path))
        return made

    encoder = encoder_class()
    encoder.vocab_size, encoder.n_hid = vocabulary, width
    groups: list[tuple[str, nn.Module]] = [("input", conv(3, width, 7))]
    channels = width
    for g in range(1, 5):
        layers: list[tuple[str, nn.Module]] = []
        for b in range(1, blocks + 1):
            layers.append((f"block_{b}", block(channels, width * 2 ** (g - 1))))
            channels = width * 2 ** (g - 1)
        if g < 4:
            layers.append(("pool", nn.MaxPool2d(kernel_size=2)))
        groups.append((f"group_{g}", nn.Sequential(OrderedDict(layers))))
    output = OrderedDict(relu=nn.ReLU(), conv=conv(channels, vocabulary, 1))
    groups.append(("output", nn.Sequential(output)))
    encoder.blocks = nn.Sequential(OrderedDict(groups))
    return encoder


def official_logits(state: dict[str, Tensor], images: Tensor, blocks: int) -> Tensor:
    """The dVAE encoder of arXiv:2102.12092, appendix A.1, written out on a state dict."""

    def conv(name: str, x: Tensor) -> Tensor:
        weight = state[f"{name}.w"]
        return F.conv2d(x, weight, state[f"{name}.b"], padding=(weight.shape[-1] - 1) // 2)

    x = conv("blocks.input", 0.8 * images + 0.1)
    for g in range(1, 5):
        for b in range(1, blocks + 1):
            name = f"blocks.group_{g}.block_{b}"
            y = x
            for i in range(1, 5):
                y = conv(f"{name}.res_path.conv_{i}", y.clamp(min=0))
            skip = conv(f"{name}.id_path", x) if f"{name}.id_path.w" in state else x
            x = skip + y / (4 * blocks) ** 2
        if g < 4:
            x = F.max_pool2d(x, 2)
    return conv("blocks.output.conv", x.clamp(min=0))


@pytest.fixture
def official(monkeypatch: pytest.MonkeyPatch):
    """A small official encoder; its package exists only while files are written."""
    for name in ("dall_e", "dall_e.encoder", "dall_e.utils"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    return official_module(vocabulary=50, width=8, blocks=2)


def write(module: nn.Module, form: str, folder: Path) -> Path:
    path = folder / {"safetensors": "encoder.safetensors", "state": "encoder.pt"}.get(form, "encoder.pkl")
    if form == "safetensors":
        save_file({k: v.contiguous() for k, v in module.state_dict().items()}, path)
    elif form == "state":
        torch.save(module.state_dict(), path)
    else:
        torch.save(module, path, _use_new_zipfile_serialization=form == "module")
    return path


@pytest.mark.parametrize("form", ["safetensors", "state", "module", "legacy module"])
def test_every_form_of_openais_file_gives_the_official_tokens(official, form, tmp_path, monkeypatch) -> None:
    path = write(official, form, tmp_path)
    state = official.state_dict()
    monkeypatch.undo()
    assert "dall_e" not in sys.modules
    tokenizer = load_tokenizer(path)
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer.vocabulary == 50
    assert not tokenizer.training
    assert not any(p.requires_grad for p in tokenizer.parameters())
    images = F.interpolate(torch.rand(4, 3, 4, 4).round(), scale_factor=8.0)
    logits = official_logits(state, images, blocks=2)
    torch.testing.assert_close(tokenizer(images), logits)
    assert torch.equal(tokenizer.ids(images, (4, 4)), logits.argmax(1))
    assert len(logits.argmax(1).unique()) > 2
    assert tokenizer.ids(images, (2, 3)).shape == (4, 2, 3)


def test_the_published_size_is_the_papers() -> None:
    with torch.device("meta"):
        encoder = DalleEncoder()
    state = encoder.state_dict()
    assert encoder.vocabulary == 8192
    assert state["blocks.input.w"].shape == (256, 3, 7, 7)
    assert state["blocks.group_4.block_1.id_path.w"].shape == (2048, 1024, 1, 1)
    assert state["blocks.group_4.block_2.res_path.conv_4.w"].shape == (2048, 512, 1, 1)
    assert state["blocks.output.conv.w"].shape == (8192, 2048, 1, 1)
    assert sum(p.numel() for p in encoder.parameters()) == 53_786_240


def test_a_weight_too_few_or_too_many_is_named(official, tmp_path: Path) -> None:
    state = official.state_dict()
    torch.save(
        {k: v for k, v in state.items() if "group_3.block_2.res_path.conv_2.b" not in k}, tmp_path / "a.pt"
    )
    torch.save({**state, "blocks.group_9.w": torch.zeros(1)}, tmp_path / "b.pt")
    with pytest.raises(UserError, match=r"group_3\.block_2\.res_path\.conv_2\.b"):
        load_tokenizer(tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"blocks\.group_9\.w"):
        load_tokenizer(tmp_path / "b.pt")


# Files that attack, and files that are something else -----------------------------------------------


class Attack:
    """What a malicious pickle does: name a function and have the reader call it."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("form", ["pickle", "zip", "legacy", "inside the module", "inside the legacy module"])
def test_a_file_that_brings_code_does_not_run_it(official, form, tmp_path) -> None:
    marker, path = tmp_path / "it ran", tmp_path / "encoder.pkl"
    if form == "pickle":
        path.write_bytes(pickle.dumps(Attack(marker)))
    elif form.endswith("module"):
        official.blocks.input.note = Attack(marker)
        torch.save(official, path, _use_new_zipfile_serialization="legacy" not in form)
    else:
        content = {"blocks.input.w": torch.zeros(1), "x": Attack(marker)}
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(UserError, match="nothing of it was run"):
        load_tokenizer(path)
    assert not marker.exists()
    if form == "pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert marker.exists(), "the attack does not work: this test could not fail"


def test_a_file_that_is_no_tokenizer_is_refused_in_one_sentence(official, tmp_path: Path) -> None:
    mae = build("mae")
    save_weights(tmp_path / "mae.safetensors", mae, {"method": "mae"})
    save_weights(tmp_path / "gone.safetensors", mae, {"method": "maee", "config": {}})
    save_weights(tmp_path / "bare.safetensors", build("vqvae"), {"method": "vqvae"})
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "linear.pt")
    (tmp_path / "text.pt").write_text("not weights")
    (tmp_path / "text.safetensors").write_text("not weights")
    whole = write(official, "module", tmp_path).read_bytes()
    (tmp_path / "half.pkl").write_bytes(whole[: len(whole) // 2])
    official.blocks.input.w = nn.Parameter(torch.zeros(8, 16, 7, 7))  # as the decoder's: codes, not pixels
    torch.save(official.state_dict(), tmp_path / "decoder.pt")
    official.blocks.loop = official.blocks
    official.blocks._modules["input"]._parameters.clear()
    torch.save(official, tmp_path / "loop.pkl")
    expected = {
        "mae.safetensors": "no tokenizer",
        "gone.safetensors": "mae",
        "bare.safetensors": "train it again",
        "other.safetensors": "dVAE",
        "tensor.pt": "dVAE",
        "linear.pt": "dVAE",
        "text.pt": "text.pt",
        "text.safetensors": "text.safetensors",
        "half.pkl": "half.pkl",
        "decoder.pt": "dVAE",
        "loop.pkl": "dVAE",
        "missing.pt": "check the path",
        ".": "check the path",
    }
    for name, words in expected.items():
        with pytest.raises(UserError) as caught:
            load_tokenizer(tmp_path / name)
        message = str(caught.value)
        assert words in message, f"{name}: {message}"
        assert "\n" not in message
