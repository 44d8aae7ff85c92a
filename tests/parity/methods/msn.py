"""MSN."""

from __future__ import annotations

import torch

from method_zoo.msn import MSN
from mimbench.method import Losses

from ..adapter import Adapter, Config, Rules, assert_same_output, vit
from ..records import Official


def _build(config: Config) -> MSN:
    width, hidden, _, out = (int(part) for part in config["head"].split()[0].split("-"))
    assert width == config["embed_dim"]
    assert config["label_smoothing"] == 0
    size = config["img_size"][0]
    return MSN(
        vit({**config, "img_size": size}, **MSN.card.backbone),
        mask_ratio=config["patch_drop"],
        random_views=config["rand_views"],
        focal_views=config["focal_views"],
        focal_size=config["focal_size"] / size,
        prototypes=config["n_proto"],
        hidden_dim=hidden,
        out_dim=out,
        temperature=config["tau"],
        sharpen=config["T"],
        balance=config["use_sinkhorn"],
        spread_weight=config["memax_weight"],
        entropy_weight=config["ent_weight"] if config["use_entropy"] else 0.0,
    )


def _masks(method: MSN, run: Official) -> torch.Tensor:
    """One order of the patches for all images and crops: the last ones are dropped."""
    (order,) = run.draws
    dropped = method.masking.hidden_cells(method.encoder.grid)
    mask = torch.zeros(len(order), dtype=torch.bool)
    mask[order[len(order) - dropped :]] = True
    return mask.expand(method.random_views * len(run.inputs["imgs"][0]), -1)


def _losses(method: MSN, run: Official) -> Losses:
    return method.losses(run.inputs["imgs"], _masks(method, run))


def _rules(config: Config) -> Rules:
    rules = [(r"prototypes\.weight", "proto/prototypes")]
    for ours, module in (("", "encoder"), (r"teacher\.networks\.", "target")):
        rules.append((rf"{ours}encoder\.", f"{module}/"))
        names = ["fc1", "bn1", None, "fc2", "bn2", None, "fc3"]
        rules += [(rf"{ours}head\.{i}\.", f"{module}/fc.{name}.") for i, name in enumerate(names) if name]
    return rules


def _check_targets(method: MSN, run: Official) -> None:
    targets = method.targets(run.inputs["imgs"][0])
    views = len(run.inputs["imgs"]) - 1
    assert_same_output(targets.repeat(views, 1), run.outputs["targets"])


ADAPTER = Adapter(
    build=_build,
    losses=_losses,
    rules=_rules,
    unused=r"running_(mean|var)$|num_batches_tracked$",  # of norms that go by the batch they see
    parts={"assignment": "ploss", "spread": "me_max"},
    check=_check_targets,
    # Batch norm over five images and targets at a temperature of 1/40 amplify the rounding of features:
    # the official float32 run lies 2e-6 off its own float64 one.
    rounding=1e-5,
)
