"""Frozen features on disk: the right ones, each once, whole or not at all."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from protocol_toys import Reports, ToyDataset, ToySplit, toy_encoder

from mimbench import registry
from mimbench.encoder import Encoder
from mimbench.errors import UserError
from mimbench.features import FeatureStore, weights_sha256
from mimbench.protocol import EvaluationFailed
from mimbench.spec import Readout

CLS, MEAN = Readout(token="cls"), Readout(token="mean")
RAW, MIDDLE, BOTH = Readout(norm="raw"), Readout(layer=-2), Readout(token="cls+mean")


def passes(encoder: Encoder) -> int:
    return encoder.backbone.passes


def left_behind(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_features_are_those_of_each_image_in_order(tmp_path):
    encoder, split = toy_encoder(), ToyDataset().train
    wanted = [CLS, MEAN, RAW, MIDDLE]
    found = FeatureStore(tmp_path).get(encoder, split, wanted, crop_pct=1.0, batch_size=32)
    images = torch.from_numpy(split.images).permute(0, 3, 1, 2)
    expected = encoder.readouts(images, wanted)
    for readout in wanted:
        assert found[readout].dtype == np.float32
        np.testing.assert_allclose(found[readout], expected[readout].numpy(), rtol=1e-5, atol=1e-6)


def test_several_readouts_take_one_pass_and_a_second_call_none(tmp_path):
    encoder, split = toy_encoder(), ToyDataset().train
    store = FeatureStore(tmp_path)
    first = store.get(encoder, split, [CLS, MEAN, MIDDLE], crop_pct=1.0, batch_size=40)
    assert passes(encoder) == 3  # of 120 images
    again = FeatureStore(tmp_path).get(encoder, split, [MEAN, BOTH], crop_pct=1.0, batch_size=40)
    assert passes(encoder) == 3
    np.testing.assert_array_equal(again[MEAN], first[MEAN])
    np.testing.assert_array_equal(again[BOTH], np.concatenate([first[CLS], first[MEAN]], axis=1))
    store.get(encoder, split, [MEAN, MIDDLE.model_copy(update={"norm": "raw"})], crop_pct=1.0, batch_size=40)
    assert passes(encoder) == 6  # only what was missing


def test_the_probe_and_knn_share_one_pass(tmp_path):
    encoder, split = toy_encoder(), ToyDataset().train
    store = FeatureStore(tmp_path)
    store.get(encoder, split, [CLS, MEAN, MIDDLE], crop_pct=1.0, batch_size=40)
    raw = store.get(encoder, split, [MEAN, RAW], crop_pct=1.0, batch_size=40)[RAW]
    assert passes(encoder) == 3
    images = torch.from_numpy(split.images).permute(0, 3, 1, 2)
    np.testing.assert_allclose(raw, encoder.readouts(images, [RAW])[RAW].numpy(), rtol=1e-5, atol=1e-6)


def test_nothing_else_is_mistaken_for_the_same_features(tmp_path):
    encoder, data = toy_encoder(), ToyDataset()
    store = FeatureStore(tmp_path)

    def extracted(encoder: Encoder, split: ToySplit, crop_pct: float = 1.0) -> bool:
        before = passes(encoder)
        store.get(encoder, split, [MEAN], crop_pct=crop_pct)
        return passes(encoder) > before

    assert extracted(encoder, data.train)
    assert not extracted(encoder, data.train)
    assert extracted(encoder, data.validation)
    assert extracted(encoder, data.train, crop_pct=0.8)
    assert extracted(toy_encoder(seed=1), data.train)
    other_input = Encoder(toy_encoder().backbone, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    assert extracted(other_input, data.train)
    with torch.no_grad():
        encoder.backbone.norm.bias[0] += 1e-3  # the very same object with one other weight
    assert extracted(encoder, data.train)


def test_a_sample_does_not_depend_on_the_size_of_the_last_batch(tmp_path):
    encoder, split = toy_encoder(), ToyDataset().train
    shorter = ToySplit("shorter", split.images[:70], split.labels[:70])
    store = FeatureStore(tmp_path)
    whole = store.get(encoder, split, [MEAN], crop_pct=1.0)[MEAN]
    np.testing.assert_array_equal(store.get(encoder, shorter, [MEAN], crop_pct=1.0)[MEAN], whole[:70])


@pytest.mark.parametrize(("value", "said"), [(float("nan"), "not all finite"), (0.0, "collapsed")])
def test_useless_features_are_said_to_be_so_and_not_kept(tmp_path, value, said):
    encoder = toy_encoder()
    with torch.no_grad():
        encoder.backbone.norm.weight.fill_(value)
    with pytest.raises(EvaluationFailed, match=said):
        FeatureStore(tmp_path).get(encoder, ToyDataset().train, [RAW, MEAN], crop_pct=1.0)
    assert not any("mean" in name for name in left_behind(tmp_path))
    with pytest.raises(EvaluationFailed, match=said):  # no cached copy hides it the second time
        FeatureStore(tmp_path).get(encoder, ToyDataset().train, [MEAN], crop_pct=1.0)


def test_an_interrupted_extraction_leaves_nothing(tmp_path):
    encoder, data = toy_encoder(), ToyDataset()
    reports = Reports()

    def interrupt(progress):
        reports(progress)
        if len(reports) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FeatureStore(tmp_path).get(
            encoder, data.train, [MEAN, CLS], crop_pct=1.0, batch_size=32, report=interrupt
        )
    assert left_behind(tmp_path) == []
    assert [round(p.done, 3) for p in reports] == [round(32 / 120, 3), round(64 / 120, 3)]


def test_a_damaged_file_is_made_anew(tmp_path):
    encoder, data = toy_encoder(), ToyDataset()
    store = FeatureStore(tmp_path)
    good = np.array(store.get(encoder, data.train, [MEAN], crop_pct=1.0)[MEAN])
    for file in tmp_path.rglob("*.npy"):
        file.write_bytes(file.read_bytes()[:-8])
    np.testing.assert_array_equal(store.get(encoder, data.train, [MEAN], crop_pct=1.0)[MEAN], good)


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path):
    encoder, data = toy_encoder(dim=512), ToyDataset()
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # else the signal ends the process before the error
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError, match="the disk is full"):
            FeatureStore(tmp_path).get(encoder, data.train, [MEAN], crop_pct=1.0, batch_size=16)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert left_behind(tmp_path) == []


def test_two_at_once_extract_once(tmp_path):
    data, encoders = ToyDataset(), [toy_encoder(), toy_encoder()]
    started = threading.Event()

    def first(progress):
        started.set()
        threading.Event().wait(0.3)  # long enough for the other to arrive; right without it, too

    def work(encoder, report):
        FeatureStore(tmp_path).get(encoder, data.train, [MEAN], crop_pct=1.0, batch_size=60, report=report)

    one = threading.Thread(target=work, args=(encoders[0], first))
    one.start()
    assert started.wait(30)
    work(encoders[1], lambda progress: None)
    one.join()
    assert [passes(encoder) for encoder in encoders] == [2, 0]


def test_the_same_weights_in_another_object_have_the_same_hash():
    assert weights_sha256(toy_encoder()) == weights_sha256(toy_encoder())
    assert weights_sha256(toy_encoder()) != weights_sha256(toy_encoder(seed=1))


def vit_features(folder: Path, fabric: Fabric | None = None) -> dict[Readout, np.ndarray]:
    torch.manual_seed(0)
    encoder = Encoder(registry.build_backbone("vit_micro_patch4", 8), (0.5,) * 3, (0.5,) * 3)
    wanted = [CLS, MEAN, Readout(layer=-2, norm="raw")]
    split = ToyDataset(sizes=(53, 20, 20)).train  # 53: the second of two processes has one less
    return FeatureStore(folder, fabric).get(encoder, split, wanted, crop_pct=1.0, batch_size=16)


PROGRAM = """
import sys
from pathlib import Path
import numpy as np, torch
from mimbench.precision import make_fabric
from test_features import vit_features

torch.set_num_threads(1)
fabric, out = make_fabric("fp32", "cpu"), Path(sys.argv[1])
np.savez(out / f"rank{fabric.global_rank}.npz", *vit_features(out / "store", fabric).values())
"""


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
def test_two_processes_give_the_same_bits_as_one_and_count_each_image_once(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, str(tmp_path / "program.py"), str(tmp_path)],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    alone = list(vit_features(tmp_path / "alone").values())
    for rank in range(2):
        both = np.load(tmp_path / f"rank{rank}.npz")
        for expected, name in zip(alone, both.files, strict=True):
            assert len(both[name]) == 53
            np.testing.assert_array_equal(both[name], expected)
