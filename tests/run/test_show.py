"""Pictures show what methods did and say what was put back; nobody sees test images by looking."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import mimbench
from mimbench import records, rng
from mimbench.cli import app
from mimbench.data.dataset import Dataset
from mimbench.errors import UserError
from mimbench.method import Step
from mimbench.show import masked, show
from mimbench.show.caption import read_caption
from mimbench.show.draw import png
from mimbench.show.panels import Box, Panel, Sheet, file_name, spread_over_classes
from mimbench.show.predictions import palette
from mimbench.show.rows import find_row
from mimbench.watching import watching

ROWS = "mae,mae[norm_pix=false],beit,simmim,supervised,random,pixels"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIMBENCH_CACHE", str(request.getfixturevalue("cache")))
        result = mimbench.run(ROWS, protocol="none", images=128, batch_size=64, precision="fp32", out=folder)
    assert result.ok
    return folder


def test_every_kind_that_suits_is_drawn_and_the_rest_is_told(trained, tmp_path):
    shown = show("mae,random", out=trained, images=2, to=tmp_path)
    assert {path.name for path in shown.files} == {
        "masked-mae.png", "attention-mae-random.png", "pca-mae-random.png", "neighbours-mae.png",
        "neighbours-random.png", "cka-mae-random.png",
    }  # fmt: skip
    for path in shown.files:
        assert np.asarray(Image.open(path)).std() > 10  # no blank page
        caption = read_caption(path)
        assert caption.matches(path.read_bytes())
        assert path.name.startswith(caption.kind)
        for job, name in caption.jobs.items():
            assert records.find(trained, job).content["variant"] == name
            assert name in path.stem
        assert len(caption.jobs) == path.stem.count("mae") + path.stem.count("random")
        assert (caption.data, caption.lines > 0, bool(caption.note)) == ("digits", True, True)
    told = " ".join(shown.left_out)
    for sentence in ("random is never trained", "segmentation is left out", "detection is left out"):
        assert sentence in told


def test_the_test_split_stays_closed(trained, tmp_path, monkeypatch):
    def opened(self):
        raise AssertionError("somebody looked at the test images")

    monkeypatch.setattr(Dataset, "open_test", opened)
    show("mae", ["masked", "attention", "pca", "neighbours"], out=trained, images=2, to=tmp_path)


def test_predicted_pixels_are_those_that_the_loss_compares(trained, digits):
    """The mean squared difference of the picture from the image is the loss, for raw pixels."""
    row = find_row(trained, "mae[norm_pix=false]", 0)
    method = row.method(digits)
    images = torch.randn(3, 3, *(row.setting.image_size,) * 2, generator=torch.Generator().manual_seed(0))
    step = Step(0.0, torch.from_numpy(rng.sample_keys(0, 0, np.arange(3))))
    with torch.no_grad(), watching(method) as seen:
        losses = method(images, step)
    predicted = ~seen.pixels.isnan()
    assert predicted.float().mean() == seen.mask.float().mean() == 0.75
    difference = (seen.pixels - images)[predicted].square().mean()
    torch.testing.assert_close(difference, losses["reconstruction"])
    assert not seen.true_statistics
    with torch.no_grad():  # watched once, it goes on as before
        torch.testing.assert_close(method(images, step), losses)


def test_true_statistics_that_were_put_back_are_owned_up_to(trained, digits):
    row = find_row(trained, "mae", 0)
    method = row.method(digits)
    size, patch = row.setting.image_size, method.encoder.patch_size
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), watching(method) as seen:
        method(images, Step(0.0, torch.from_numpy(rng.sample_keys(0, 0, np.arange(2)))))
    assert seen.true_statistics
    true, predicted = (
        x.unfold(2, patch, patch).unfold(3, patch, patch).permute(0, 2, 3, 1, 4, 5).flatten(3)
        for x in (images, seen.pixels)
    )
    hidden = seen.mask.view(2, size // patch, size // patch)
    errors = (predicted - true)[hidden] / (true[hidden].var(-1, keepdim=True) + 1e-6).sqrt()
    with torch.no_grad():
        loss = method(images, Step(0.0, torch.from_numpy(rng.sample_keys(0, 0, np.arange(2)))))
    torch.testing.assert_close(errors.square().mean(), loss["reconstruction"], rtol=1e-4, atol=1e-5)
    assert "mean and variance of each patch were put back" in masked.sheet(row, digits, 2, 0).note
    raw = masked.sheet(find_row(trained, "mae[norm_pix=false]", 0), digits, 2, 0)
    assert "No statistics" in raw.note


def test_hidden_patches_are_hidden_in_the_picture(trained, digits):
    sheet = masked.sheet(find_row(trained, "simmim", 0), digits, 2, 0)
    for image, given, predicted in sheet.rows:
        grey = (given.image == round(255 * masked.HIDDEN)).all(-1)
        assert 0.3 < grey.mean() < 0.9
        np.testing.assert_array_equal(given.image[~grey], image.image[~grey])
        np.testing.assert_array_equal(predicted.image[~grey], image.image[~grey])
        assert (predicted.image[grey] != image.image[grey]).any()


def test_a_method_without_pixels_says_what_it_predicts(trained, digits):
    sheet = masked.sheet(find_row(trained, "beit", 0), digits, 2, 0)
    assert sheet.headings == ("image", "what the encoder is given")
    assert "predicts no pixels: its target is low level: discrete tokens" in sheet.note


def test_neighbours_of_known_classes_are_framed(trained, tmp_path, digits):
    from mimbench.show.encoders import neighbours

    sheet = neighbours(find_row(trained, "pixels", 0), digits, 10, lambda progress: None)
    for query, *found in sheet.rows:
        assert [panel.frame == "#1a7f37" for panel in found] == [
            panel.caption.split()[0] == query.caption for panel in found
        ]
        cosines = [float(panel.caption.split()[1]) for panel in found]
        assert cosines == sorted(cosines, reverse=True)
    right = [panel.frame == "#1a7f37" for _, *found in sheet.rows for panel in found]
    assert np.mean(right) > 0.8  # chance is 0.1


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"rows": "mea"}, "did you mean mae"),
        ({"what": "atention"}, "did you mean attention"),
        ({"rows": ""}, "nothing to show"),
        ({"rows": "pixels", "what": "attention"}, "attention"),
        ({"rows": "random", "what": "masked"}, "never trained"),
        ({"what": "segmentation"}, "--data"),
    ],
)
def test_a_mistake_is_one_clear_sentence(trained, tmp_path, given, says):
    with pytest.raises(UserError, match=says) as caught:
        show(**{"rows": "mae", "out": trained, "images": 1, "to": tmp_path, **given})
    assert "\n" not in str(caught.value)


def test_the_command_names_the_files_it_wrote(trained, tmp_path):
    options = ["show", "mae", "--what", "pca", "--out", str(trained), "--images", "1", "--to", str(tmp_path)]
    ended = CliRunner().invoke(app, options)
    assert ended.exit_code == 0, ended.output
    assert str(tmp_path / "pca-mae.png") in ended.output.replace("\n", "")


def test_boxes_frames_and_captions_land_on_the_sheet():
    white = np.full((20, 30, 3), 255, np.uint8)
    plain = Sheet("a", "title", ("one",), ((Panel(white),),))
    boxed = Sheet("a", "title", ("one",), ((Panel(white, boxes=(Box(5, 5, 10, 8, "cat", "#0000ff"),)),),))
    before, after = (
        np.asarray(Image.open(io.BytesIO(png(sheet))).convert("RGB")) for sheet in (plain, boxed)
    )
    blue = (after == [0, 0, 255]).all(-1)
    assert blue.any()
    assert not (before == [0, 0, 255]).all(-1).any()
    assert png(plain) == png(plain)  # the same picture is the same file


def test_names_of_files_hold_nothing_a_folder_could_mean():
    assert file_name("masked", "mae[mask_ratio=0.5]/..\\x") == "masked-mae-mask_ratio-0.5-..-x"


def test_images_are_chosen_over_all_classes(digits):
    chosen = spread_over_classes(digits.validation, 10)
    assert sorted(digits.validation.labels[chosen]) == list(range(10))


def test_colours_of_many_classes_differ():
    colours = palette(150).astype(int)
    assert len({tuple(colour) for colour in colours}) == 150


def test_layers_of_one_method_are_their_own_likeness(trained, digits):
    from mimbench.show.alike import _layers, matrix

    mae, beit = (
        _layers(find_row(trained, name, 0), digits, lambda progress: None) for name in ("mae", "beit")
    )
    own, across = matrix(mae, mae), matrix(mae, beit)
    np.testing.assert_allclose(np.diag(own), 1, rtol=1e-6)
    assert across.max() < 0.999
