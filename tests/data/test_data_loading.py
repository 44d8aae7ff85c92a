from __future__ import annotations

import numpy as np
import pytest
import torch

from mimbench import rng
from mimbench.data import evaluation_batches, open_dataset, training_batches
from mimbench.data.transforms import EvalTransform, TrainTransform
from mimbench.errors import UserError
from mimbench.spec import Augmentation, View

HOW = Augmentation(color_jitter=0.2)


@pytest.fixture
def split(make_folder):
    """37 labelled training images, so that no batch size divides them."""
    root = make_folder(
        "pets", {"train/a": 20, "train/b": 17, "val/a": 1, "val/b": 1, "test/a": 1, "test/b": 1}
    )
    return open_dataset(f"imagefolder:{root}").train


def steps(split, **more) -> list:
    options = {"augmentation": HOW, "image_size": 16, "seed": 3, "batch_size": 10, "stop": 9} | more
    return list(training_batches(split, **options))


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a[:3], b[:3], strict=True))


def whole(step) -> tuple:
    return tuple(torch.cat(column) for column in list(zip(*step, strict=True))[:3])


def test_batches_are_what_the_contract_says(split):
    # The definition, one sample at a time.
    n = len(split)
    transform = TrainTransform(HOW, 16)
    for step, batches in enumerate(steps(split)):
        images, labels, keys = whole(batches)
        assert images.shape == (10, 3, 16, 16)
        assert (images.dtype, labels.dtype, keys.dtype) == (torch.uint8, torch.int64, torch.int64)
        for row in range(10):
            position = step * 10 + row
            epoch = position // n
            sample = int(rng.permutation(3, epoch, n)[position % n])
            key = int(rng.sample_keys(3, epoch, np.array([sample]))[0])
            assert keys[row] == key
            assert labels[row] == split.labels[sample]
            assert torch.equal(images[row], transform(split.image(sample), key))


VIEWS = (
    View(image_size=8, augmentation=Augmentation(crop_scale=(0.05, 0.3))),
    View(image_size=16, crop="same", augmentation=Augmentation(grayscale=1.0)),
    View(image_size=16, crop="shifted", shift=0.2),
)


def test_views_do_not_change_what_all_methods_see(split):
    for plain, rich in zip(
        steps(split, micro_batch=4), steps(split, micro_batch=4, views=VIEWS), strict=True
    ):
        for without, batch in zip(plain, rich, strict=True):
            assert same(without, batch)
            assert torch.equal(batch.views[0].images, batch.images)
            assert [view.images.shape[-1] for view in batch.views] == [16, 8, 16, 16]


def test_views_lie_where_they_say(split):
    ((batch,),) = steps(split, stop=1, views=VIEWS)
    first, small, same_place, shifted = batch.views
    for view in batch.views:
        assert view.boxes.dtype == torch.float32
        assert (view.boxes[:, :2] >= 0).all()
        assert (view.boxes[:, :2] + view.boxes[:, 2:] <= 1 + 1e-6).all()
    assert (small.boxes[:, 2:].prod(1) < 0.35).all()
    assert not torch.equal(small.flipped, first.flipped)
    assert torch.equal(same_place.boxes, first.boxes)
    assert torch.equal(same_place.flipped, first.flipped)
    assert torch.equal(same_place.images[:, 0], same_place.images[:, 1])  # grey
    assert torch.equal(shifted.flipped, first.flipped)
    assert torch.equal(shifted.boxes[:, 2:], first.boxes[:, 2:])
    moved = (shifted.boxes[:, :2] - first.boxes[:, :2]).abs() / first.boxes[:, 2:]
    assert moved.max() > 0.02
    assert moved.max() < 0.25  # of the crop's side, plus rounding to pixels


@pytest.mark.parametrize("batch_size", [1, 10, 37, 80])
def test_each_epoch_takes_every_image_once(split, batch_size):
    stop = -(-3 * 37 // batch_size)
    keys = torch.cat([b.keys for step in steps(split, batch_size=batch_size, stop=stop) for b in step])
    for epoch in range(3):
        expected = rng.sample_keys(3, epoch, np.arange(37))
        assert sorted(keys[epoch * 37 : (epoch + 1) * 37].tolist()) == sorted(expected.tolist())


def test_epochs_and_seeds_differ_in_order_and_augmentation(split):
    one = [whole(step) for step in steps(split, batch_size=37, stop=2)]
    other = [whole(step) for step in steps(split, batch_size=37, stop=2, seed=4)]
    assert one[0][1].tolist() != one[1][1].tolist()
    assert one[0][1].tolist() != other[0][1].tolist()
    assert not set(one[0][2].tolist()) & set(one[1][2].tolist()) & set(other[0][2].tolist())


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gives_the_same_bits(split, workers):
    alone = steps(split, micro_batch=4)
    helped = steps(split, micro_batch=4, workers=workers)
    assert len(alone) == len(helped) == 9
    for a, b in zip(alone, helped, strict=True):
        assert [len(x.keys) for x in a] == [len(x.keys) for x in b] == [4, 4, 2]
        assert all(same(x, y) for x, y in zip(a, b, strict=True))


def test_two_processes_count_each_image_once(split):
    alone = [whole(step) for step in steps(split)]
    ranks = [[whole(step) for step in steps(split, rank=rank, world=2)] for rank in (0, 1)]
    for step in range(9):
        for rank in (0, 1):
            assert same([column[rank::2] for column in alone[step]], ranks[rank][step])


def test_a_batch_that_processes_cannot_share_is_refused(split):
    with pytest.raises(UserError, match="batch of 10 cannot be shared evenly by 3"):
        steps(split, world=3)


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_goes_on_where_it_was(split, workers):
    through = steps(split, workers=workers)
    resumed = steps(split, stop=4, workers=workers) + steps(split, start=4, workers=workers)
    assert all(same(whole(a), whole(b)) for a, b in zip(through, resumed, strict=True))
    assert steps(split, start=9) == []


@pytest.mark.parametrize("micro_batch", [1, 3, 5, 10, 99])
def test_micro_batches_are_the_batch_in_pieces(split, micro_batch):
    for a, b in zip(steps(split), steps(split, micro_batch=micro_batch), strict=True):
        assert max(len(x.keys) for x in b) <= micro_batch
        assert same(whole(a), whole(b))


def test_a_method_in_need_of_more_images_than_there_are_gets_whole_batches(split):
    ((batch,),) = steps(split, batch_size=100, stop=1)
    assert len(batch.keys) == 100
    assert len(set(batch.keys.tolist())) == 100


def test_unlabelled_batches_have_no_labels(make_folder):
    data = open_dataset(f"imagefolder:{make_folder('photos', {'.': 10})}")
    for workers in (0, 1):
        for (batch,) in steps(data.train, batch_size=4, stop=2, workers=workers):
            assert batch.labels is None
            assert batch.images.shape == (4, 3, 16, 16)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_sees_each_image_once_unpadded(split, workers, world):
    seen = {}
    for rank in range(world):
        batches = evaluation_batches(
            split, image_size=16, crop_pct=0.875, batch_size=5, rank=rank, world=world, workers=workers
        )
        own = []
        for indices, images in batches:
            assert images.shape == (len(indices), 3, 16, 16)
            assert images.dtype == torch.uint8
            own += indices.tolist()
            for index, image in zip(indices.tolist(), images, strict=True):
                assert index not in seen
                seen[index] = image
        assert own == list(range(rank, 37, world))
    assert len(seen) == 37
    transform = EvalTransform(16, 0.875)
    assert all(torch.equal(seen[i], transform(split.image(i))) for i in range(37))


def test_more_processes_than_images_is_no_error(split):
    batches = evaluation_batches(split, image_size=16, crop_pct=1.0, batch_size=5, rank=40, world=50)
    assert list(batches) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_a_lost_image_is_one_sentence_from_a_worker_too(make_folder, monkeypatch, workers):
    monkeypatch.setenv("MIMBENCH_STORE_LIMIT_GB", "0")
    root = make_folder("pets", {"a": 10, "b": 10})
    train = open_dataset(f"imagefolder:{root}").train
    (root / train.sample_id(9)).unlink()
    with pytest.raises(UserError, match="can no longer be read") as caught:
        list(evaluation_batches(train, image_size=8, crop_pct=1.0, batch_size=4, workers=workers))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="can no longer be read"):
        steps(train, workers=workers, batch_size=16, stop=1)


def test_stopping_early_ends_the_workers(split):
    import multiprocessing

    before = set(multiprocessing.active_children())
    batches = training_batches(
        split, augmentation=HOW, image_size=16, seed=0, batch_size=4, stop=10_000, workers=2
    )
    next(batches)
    assert len(set(multiprocessing.active_children()) - before) == 2
    batches.close()
    assert set(multiprocessing.active_children()) - before == set()
