from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps

from mimbench import rng
from mimbench.data.transforms import (
    EvalTransform,
    TrainTransform,
    _turn_hue,
    color_jitter,
    crop_box,
    resize,
    square_box,
)
from mimbench.spec import Augmentation


def smooth(seed: int, height: int, width: int) -> np.ndarray:
    """A picture rather than noise: low frequencies and some grain."""
    draw = np.random.default_rng(seed)
    small = Image.fromarray(draw.integers(0, 256, (6, 6, 3), np.uint8)).resize((width, height), Image.BICUBIC)
    grain = draw.integers(-8, 9, (height, width, 3))
    return np.clip(np.asarray(small).astype(int) + grain, 0, 255).astype(np.uint8)


def hwc(image: torch.Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(40, 40), (97, 61), (16, 300), (224, 224)])
def test_resizing_is_pillows_up_to_rounding(mode, size):
    pixels = smooth(0, 120, 90)
    reference = np.asarray(
        Image.fromarray(pixels).resize((size[1], size[0]), getattr(Image.Resampling, mode.upper()))
    )
    ours = hwc(resize(pixels, *size, mode))
    difference = np.abs(ours.astype(int) - reference.astype(int))
    assert difference.max() <= 2
    assert difference.mean() < 0.25


@pytest.mark.parametrize(("height", "width"), [(120, 90), (90, 120), (64, 64), (30, 200), (8, 8)])
@pytest.mark.parametrize("crop_pct", [0.875, 1.0])
def test_evaluation_is_the_usual_resize_and_central_crop(height, width, crop_pct):
    # torchvision's Resize(short) and CenterCrop(size), written out with Pillow.
    size, pixels = 56, smooth(1, height, width)
    short = round(size / crop_pct)
    scaled = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
    image = Image.fromarray(pixels).resize(scaled, Image.Resampling.BICUBIC)
    left, top = round((scaled[0] - size) / 2), round((scaled[1] - size) / 2)
    reference = np.asarray(image.crop((left, top, left + size, top + size)))
    ours = hwc(EvalTransform(size, crop_pct)(pixels))
    assert ours.dtype == np.uint8
    assert np.abs(ours.astype(int) - reference).max() <= 2


def test_an_image_of_the_right_size_passes_evaluation_unchanged():
    pixels = smooth(2, 256, 256)
    assert np.array_equal(hwc(EvalTransform(224)(pixels)), pixels[16:240, 16:240])
    assert np.array_equal(hwc(EvalTransform(256, 1.0)(pixels)), pixels)


@pytest.mark.parametrize("arguments", [(0, 0.875), (224, 0.0), (224, 1.5)])
def test_an_impossible_evaluation_transform_is_refused(arguments):
    with pytest.raises(ValueError, match="out of range"):
        EvalTransform(*arguments)


sides = st.integers(1, 400)


@settings(max_examples=200, deadline=None)
@given(height=sides, width=sides, seed=st.integers(0, 2**32), low=st.floats(0.05, 1.0))
def test_a_crop_lies_inside_and_keeps_to_its_area_and_ratio(height, width, seed, low):
    ratio = (3 / 4, 4 / 3)
    top, left, h, w = crop_box(height, width, (low, 1.0), ratio, np.random.default_rng(seed))
    assert 0 <= top <= height - h
    assert 0 <= left <= width - w
    assert h >= 1
    assert w >= 1
    fair = ratio[0] <= width / height <= ratio[1]
    if fair:  # rounding moves each side by half a pixel at most
        assert (h + 0.5) * (w + 0.5) >= low * height * width
        assert (w + 0.5) / (h - 0.5) >= ratio[0]
        assert (w - 0.5) / (h + 0.5) <= ratio[1]


def test_crops_are_uniform_in_area_and_log_uniform_in_ratio():
    # Inception's crop: half of the areas below the middle of the range, half of the ratios above 1.
    draw = np.random.default_rng(0)
    boxes = [crop_box(2000, 2000, (0.2, 0.6), (3 / 4, 4 / 3), draw) for _ in range(4000)]
    areas = np.array([h * w for _, _, h, w in boxes]) / 2000**2
    ratios = np.log([w / h for _, _, h, w in boxes])
    assert abs(np.quantile(areas, 0.5) - 0.4) < 0.01
    assert abs(np.quantile(areas, 0.25) - 0.3) < 0.01
    assert abs(np.quantile(ratios, 0.5)) < 0.01
    assert abs(np.quantile(ratios, 0.75) - math.log(4 / 3) / 2) < 0.01
    places = np.array([top / (2000 - h) for top, _, h, _ in boxes])
    assert abs(places.mean() - 0.5) < 0.02


def test_an_image_too_narrow_for_any_fair_crop_gives_its_centre():
    assert crop_box(10, 1000, (1.0, 1.0), (3 / 4, 4 / 3), np.random.default_rng(0)) == (0, 493, 10, 13)
    assert crop_box(1000, 10, (1.0, 1.0), (3 / 4, 4 / 3), np.random.default_rng(0)) == (493, 0, 13, 10)


def test_the_largest_square_lies_anywhere_along_the_longer_side():
    draw = np.random.default_rng(0)
    wide = np.array([square_box(100, 160, draw) for _ in range(2000)])
    tall = np.array([square_box(160, 100, draw) for _ in range(2000)])
    assert (wide[:, [0, 2, 3]] == (0, 100, 100)).all()
    assert (tall[:, 1:] == (0, 100, 100)).all()
    for places in (wide[:, 1], tall[:, 0]):
        assert set(places) == set(range(61))
        assert abs(places.mean() - 30) < 2


def test_a_training_image_is_the_crop_resized_and_perhaps_mirrored():
    pixels, how = smooth(3, 100, 80), Augmentation()
    mirrored = 0
    for key in range(200):
        draw = rng.numpy_generator(key, "augment")
        top, left, h, w = crop_box(100, 80, how.crop_scale, how.crop_ratio, draw)
        crop = Image.fromarray(pixels[top : top + h, left : left + w])
        reference = crop.resize((48, 48), Image.Resampling.BICUBIC)
        ours = hwc(TrainTransform(how, 48)(pixels, key)).astype(int)
        plain = np.abs(ours - np.asarray(reference)).max()
        mirror = np.abs(ours[:, ::-1] - np.asarray(reference)).max()
        assert min(plain, mirror) <= 2
        mirrored += mirror <= 2
    assert 70 < mirrored < 130


def test_a_training_image_depends_on_its_key_alone():
    pixels, transform = smooth(4, 60, 60), TrainTransform(Augmentation(color_jitter=0.4), 32)
    first = [transform(pixels, key).clone() for key in range(20)]
    backwards = [transform(pixels, key) for key in reversed(range(20))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(first, backwards, strict=True))
    assert len({image.contiguous().numpy().tobytes() for image in first}) == 20


@pytest.mark.parametrize(
    "change",
    [
        {"crop": "square"},
        {"crop_scale": (0.5, 1.0)},
        {"crop_ratio": (0.9, 1.1)},
        {"interpolation": "bilinear"},
        {"flip": False},
        {"color_jitter": 0.4},
        {"saturation": 0.4},
        {"hue": 0.2},
        {"color_jitter": 0.4, "jitter_probability": 0.3},
        {"grayscale": 0.5},
        {"blur": 0.5},
        {"solarize": 0.5},
        {"rand_augment": "rand-m9-mstd0.5-inc1"},
    ],
)
def test_every_augmentation_setting_moves_something(change):
    pixels = smooth(5, 60, 60)
    before, after = TrainTransform(Augmentation(), 112), TrainTransform(Augmentation(**change), 112)
    assert any(not torch.equal(before(pixels, key), after(pixels, key)) for key in range(10))


def test_turning_the_hue_is_torchvisions():
    import mimbench.torchvision_compat  # noqa: F401  isort: skip
    from torchvision.transforms.functional import adjust_hue

    image = Image.fromarray(smooth(8, 20, 20))
    for turn in (-100, -3, 0, 1, 90):
        assert np.array_equal(np.array(_turn_hue(image, turn)), np.array(adjust_hue(image, turn / 255)))


def test_colours_change_as_often_as_asked():
    pixels = smooth(9, 16, 16)
    still = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "flip": False}
    for effect in ("grayscale", "solarize"):
        transform = TrainTransform(Augmentation(**still, **{effect: 0.3}), 16)
        changed = sum(not np.array_equal(hwc(transform(pixels, key)), pixels) for key in range(400))
        assert 90 < changed < 150
    rare = Augmentation(**still, color_jitter=0.4, jitter_probability=0.25)
    changed = sum(
        not np.array_equal(hwc(TrainTransform(rare, 16)(pixels, key)), pixels) for key in range(400)
    )
    assert 70 < changed < 130


def test_without_flip_and_crop_a_digit_stays_itself():
    pixels = smooth(6, 8, 8)
    still = Augmentation(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=False)
    for key in range(20):
        assert np.array_equal(hwc(TrainTransform(still, 8)(pixels, key)), pixels)


def test_colour_jitter_is_three_enhancements_with_factors_in_range():
    pixels, strength = smooth(7, 20, 20), 0.4
    draw = np.random.default_rng(11)
    factors, order = draw.uniform(0.6, 1.4, 3), draw.permutation(3)
    image = Image.fromarray(pixels)
    for kind in order:
        enhancer = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[kind]
        image = enhancer(image).enhance(factors[kind])
    assert np.array_equal(color_jitter(pixels, strength, np.random.default_rng(11)), np.asarray(image))
    assert np.array_equal(color_jitter(pixels, 0.0, np.random.default_rng(0)), pixels)


RAND = "rand-m9-mstd0.5-inc1"


def test_rand_augment_is_timms_on_the_mirrored_crop() -> None:
    import random

    import mimbench.torchvision_compat  # noqa: F401  isort: skip
    from timm.data.transforms_factory import transforms_imagenet_train

    (theirs,) = transforms_imagenet_train(
        32, auto_augment=RAND, mean=(0.4, 0.5, 0.6), interpolation="bicubic", separate=True
    )[1].transforms
    pixels, how = smooth(8, 60, 60), Augmentation(rand_augment=RAND, fill=(102, 128, 153))
    plain = TrainTransform(Augmentation(), 32)
    moved = 0
    for key in range(20):
        random.seed(key)
        before = random.getstate(), np.random.get_state()[1].tolist()
        ours = TrainTransform(how, 32)(pixels, key)
        assert (random.getstate(), np.random.get_state()[1].tolist()) == before
        draw = rng.numpy_generator(key, "augment")
        crop_box(60, 60, how.crop_scale, how.crop_ratio, draw)
        assert draw.random() is not None  # whether it is mirrored
        seed = int(draw.integers(2**63))
        random.seed(seed)
        np.random.seed(seed % 2**32)
        expected = np.asarray(theirs(Image.fromarray(hwc(plain(pixels, key)))))
        np.testing.assert_array_equal(hwc(ours), expected)
        moved += not torch.equal(ours, plain(pixels, key))
    assert moved > 10


def test_what_rand_augment_moves_away_is_filled_as_asked() -> None:
    pixels = np.full((40, 40, 3), 200, np.uint8)
    found = set()
    for key in range(40):
        image = TrainTransform(Augmentation(rand_augment="rand-m9-n1-p1-inc1", fill=(1, 2, 3)), 16)(
            pixels, key
        )
        found |= {tuple(pixel) for pixel in hwc(image).reshape(-1, 3).tolist()}
    assert (1, 2, 3) in found


def test_settings_that_came_later_leave_earlier_ids_alone() -> None:
    from mimbench.spec import Recipe, View

    assert not {"rand_augment", "fill"} & Augmentation().content().keys()
    assert Augmentation(rand_augment=RAND).content()["rand_augment"] == RAND
    assert "rand_augment" not in View(image_size=8).content()["augmentation"]
    recipe = Recipe(base_lr=1, batch_size=1, augmentation=Augmentation(fill=(1, 2, 3)), source="test")
    assert Recipe.model_validate(recipe.content()) == recipe
    assert recipe.content()["augmentation"].keys() == Augmentation().content().keys() | {"fill"}


def test_posterizing_to_no_bits_is_black_and_no_error():
    """Pillow 12 refuses what timm asks for at the highest magnitude."""
    from mimbench.data.transforms import _posterize, _rand_augment

    image = Image.fromarray(smooth(9, 20, 20))
    for bits in range(1, 9):
        np.testing.assert_array_equal(_posterize(image, bits), ImageOps.posterize(image, bits))
    assert not np.asarray(_posterize(image, 0)).any()
    ops = {op.name: op for op in _rand_augment("rand-m10-p1-inc1", 20, "bicubic", None).ops}
    assert not np.asarray(ops["PosterizeIncreasing"](image)).any()
