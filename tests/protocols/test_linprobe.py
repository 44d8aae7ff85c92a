"""The linear probe as a protocol: what it reads, chooses and says."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from protocol_toys import Reports, ToyBackbone, ToyDataset, around, toy_encoder

from mimbench.encoder import Encoder
from mimbench.errors import UserError
from mimbench.protocol import EvaluationFailed
from protocols.linprobe import LinearProbe
from protocols.parts.course import lay_out
from protocols.parts.inputs import inputs_of


def test_readouts_are_tokens_of_blocks_counted_from_the_end():
    encoder = toy_encoder(depth=4)

    def parts(text: str) -> dict[str, list[tuple[str, int, str]]]:
        found, _ = inputs_of([text], encoder, "linprobe")
        return {name: [(p.token, p.layer, p.norm) for p in value] for name, value in found.items()}

    assert parts("mean@0.75") == {"mean@0.75": [("mean", -2, "final")]}
    assert parts("cls") == {"cls": [("cls", -1, "final")]}
    assert parts("cls+mean@.5/raw") == {"cls+mean@.5/raw": [("cls", -3, "raw"), ("mean", -3, "raw")]}
    assert parts("mean@block1") == {"mean@block1": [("mean", -4, "final")]}
    last_two = [("cls", -2, "final"), ("cls", -1, "final"), ("mean", -1, "final")]
    assert parts("cls@last2&mean") == {"cls@last2&mean": last_two}
    assert parts("mean@last9") == {"mean@last9": [("mean", layer, "final") for layer in (-4, -3, -2, -1)]}
    every = {f"cls+mean@block{i}/raw": [(t, i - 5, "raw") for t in ("cls", "mean")] for i in (1, 2, 3, 4)}
    assert parts("cls+mean@every/raw") == every
    with pytest.raises(UserError, match="does not have"):
        parts("mean@block5")
    found, notes = inputs_of(["mean@block5", "mean", "mean@block4", "mean@1"], encoder, "linprobe")
    assert list(found) == ["mean"]
    assert len(notes) == 3


@pytest.mark.parametrize(
    "text",
    [
        "max",
        "mean@",
        "mean@0",
        "mean@2",
        "mean@-1",
        "cls+",
        "mean+cls",
        "",
        "cls&",
        "mean/rawer",
        "mean@last0",
    ],
)
def test_a_misspelt_readout_is_refused_before_any_work(text):
    with pytest.raises(UserError, match="is not a readout"):
        LinearProbe(readouts=(text,)).check(ToyDataset())


def test_what_a_backbone_lacks_falls_away_and_it_is_said(tmp_path):
    found = LinearProbe(min_steps=5, epochs=0.1).evaluate(
        toy_encoder(cls_token=False, depth=1), ToyDataset(), around(tmp_path)
    )
    assert {c["readout"] for c in found.selection["candidates"]} == {"mean"}
    assert len(found.selection["notes"]) == 5
    with pytest.raises(UserError, match="class token"):
        LinearProbe(readouts=("cls",)).evaluate(toy_encoder(cls_token=False), ToyDataset(), around(tmp_path))


def test_if_everything_diverges_it_is_a_failure_and_not_a_number(tmp_path):
    with pytest.raises(EvaluationFailed, match="could be fitted"):
        LinearProbe(lr=(1e38,), min_steps=200).evaluate(toy_encoder(), ToyDataset(), around(tmp_path))


@pytest.mark.parametrize(("classes", "has"), [(5, False), (6, True)])
def test_top5_is_given_where_it_says_something(tmp_path, classes, has):
    data = ToyDataset(classes=classes)
    found = LinearProbe(min_steps=20, epochs=1).evaluate(toy_encoder(), data, around(tmp_path))
    assert ("top5" in found.metrics) == has
    assert found.metrics["top1"] == found.outcomes.hits.mean()
    assert found.metrics.get("top5", 1) >= found.metrics["top1"]


def test_a_handful_of_images_is_enough_to_run(tmp_path):
    data = ToyDataset(sizes=(3, 2, 2), classes=2)
    found = LinearProbe(min_steps=20).evaluate(toy_encoder(), data, around(tmp_path))
    assert found.outcomes.n == 2


def test_progress_reaches_the_end(tmp_path):
    reports = Reports()
    probe = LinearProbe(min_steps=100, epochs=0.1)
    probe.evaluate(toy_encoder(), ToyDataset(), around(tmp_path, report=reports))
    shares = [p.done for p in reports if p.stage == "training the probe"]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_the_metrics_are_those_of_the_chosen_head(tmp_path):
    encoder, data = toy_encoder(), ToyDataset(noise=60)
    found = LinearProbe(min_steps=300, epochs=1).evaluate(encoder, data, around(tmp_path))
    chosen = found.selection["candidates"][found.selection["chosen"]]
    assert found.metrics["validation_top1"] == chosen["validation_top1"]
    assert chosen["validation_top1"] == max(c["validation_top1"] for c in found.selection["candidates"])
    alone = LinearProbe(
        min_steps=300,
        epochs=1,
        lr=(chosen["lr"],),
        readouts=(chosen["readout"],),
        batch_norm=(chosen["batch_norm"],),
    ).evaluate(encoder, copy.copy(data), around(tmp_path))
    np.testing.assert_array_equal(alone.outcomes.hits, found.outcomes.hits)
    assert alone.metrics == pytest.approx(found.metrics)


def test_a_recipe_for_a_million_images_keeps_its_shape_and_leaves_updates_on_a_thousand():
    mae = {"epochs": 90, "batch_size": 16384, "min_steps": 1000, "checkpoints": 90}
    imagenet = lay_out(1_281_167, **mae)
    assert (imagenet.steps, imagenet.batch_size, len(imagenet.marks)) == (7038, 16384, 90)
    middling = lay_out(100_000, **mae)
    assert (middling.batch_size, middling.steps) == (8192, 1099)
    digits = lay_out(1080, **mae)
    assert (digits.batch_size, digits.steps) == (256, 1000)
    assert digits.marks[-1] == 1000
    default = lay_out(1080, epochs=30, min_steps=3000, batch_size=256)
    assert (default.steps, default.batch_size, default.marks) == (3000, 256, (3000,))


def test_rates_rise_linearly_and_fall_along_a_cosine_or_in_steps():
    course = lay_out(100, epochs=10, min_steps=1, batch_size=10, warmup=0.2)
    assert [course.factor(step) for step in (0, 10, 20, 60)] == pytest.approx([0, 0.5, 1, 0.5])
    assert course.factor(99) < 0.001
    steps = lay_out(100, epochs=10, min_steps=1, batch_size=10, milestones=(0.3, 0.6))
    assert [steps.factor(step) for step in (0, 29, 30, 59, 60, 99)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )


class Forgetful(ToyBackbone):
    """Its last block lets nothing but one number through."""

    def encode(self, *args, layers=(), **options):
        out = super().encode(*args, layers=layers, **options)
        kept = torch.eye(self.embed_dim)[0]
        taps = zip(layers, out.layers, strict=True)
        return out._replace(layers=tuple(tuple(x * kept for x in tap) if i == -1 else tap for i, tap in taps))


def test_a_last_block_far_behind_is_said_beside_the_row(tmp_path):
    data = ToyDataset(sizes=(300, 300, 60), noise=40)
    probe = LinearProbe(min_steps=300, epochs=1)
    assert "flags" not in probe.evaluate(toy_encoder(), data, around(tmp_path / "sound")).facts
    encoder = Encoder(Forgetful(), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))
    found = probe.evaluate(encoder, data, around(tmp_path / "forgetful"))
    (flag,) = found.facts["flags"]
    best = found.selection["candidates"][found.selection["chosen"]]
    last = [c["validation_top1"] for c in found.selection["candidates"] if "@" not in c["readout"]]
    behind = 100 * (best["validation_top1"] - max(last))
    assert behind > 20
    assert flag == f"the last block is {behind:.0f} points behind {best['readout']} on validation images"


def test_a_smaller_batch_keeps_the_rates_of_the_recipe(tmp_path):
    """LARS moves by a share of the weights: rates scaled down along with the batch would lead nowhere."""
    recipe = {**LinearProbe.presets["mae"].fields, "augment": "none", "min_steps": 60, "checkpoints": 1}
    shrunk = LinearProbe(**recipe).evaluate(toy_encoder(), ToyDataset(), around(tmp_path))
    assert shrunk.selection["notes"] == [
        "batches of 256 instead of 16384, which would leave fewer than 60 updates on 120 training images; "
        "rates are as they were"
    ]
    same = {**recipe, "batch_size": 256, "lr": (0.1 * 16384 / 256,)}
    direct = LinearProbe(**same).evaluate(toy_encoder(), ToyDataset(), around(tmp_path))
    assert shrunk.metrics == direct.metrics
    np.testing.assert_array_equal(shrunk.outcomes.hits, direct.outcomes.hits)
