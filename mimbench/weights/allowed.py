"""What a foreign checkpoint may name: what builds tensors and plain containers, and what is stood in for.

A pickle names classes and functions to be called. Torch's own that build tensors are called; what else real
checkpoints hold (settings, places, times, counters) becomes ``Stored``, a plain dict or a list, so none of
those packages need be there and none of their code runs. Any other name is refused.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch


class Stored:
    """Stands for an object of a class that is not imported: keeps what was stored, has no behaviour."""

    dump_patches = False  # torch asks this of a module whose source code is stored with it

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                vars(self).update({str(name): value for name, value in part.items()})


def _list(*_: Any) -> list[Any]:
    """What a list with extras begins as; pickles append its items afterwards."""
    return []


def _dict(*_: Any) -> OrderedDict[Any, Any]:
    """What a dictionary with extras begins as; pickles set its items afterwards."""
    return OrderedDict()


_STORAGES = (
    *("BFloat16", "Bool", "Byte", "Char", "ComplexDouble", "ComplexFloat"),
    *("Double", "Float", "Half", "Int", "Long", "Short"),
)
_DTYPES = {str(value) for value in vars(torch).values() if isinstance(value, torch.dtype)}

# Called as they are. Not among them: sparse, quantised and nested tensors and subclasses of tensors.
BUILDING = frozenset(
    {f"torch.{name}Storage" for name in _STORAGES}
    | _DTYPES
    | {
        "_codecs.encode",
        "builtins.complex",
        "builtins.set",
        "collections.Counter",
        "collections.OrderedDict",
        "torch.Size",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_parameter_with_state",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor_v3",
        "torch.device",
        "torch.nn.parameter.Parameter",
        "torch.storage.TypedStorage",
        "torch.storage.UntypedStorage",
    }
)

# The classes of OpenAI's dVAE, the one released file that is read and holds a whole module.
MODULES = frozenset(
    {
        "dall_e.encoder.Encoder",
        "dall_e.encoder.EncoderBlock",
        "dall_e.utils.Conv2d",
        "torch.nn.modules.activation.ReLU",
        "torch.nn.modules.container.Sequential",
        "torch.nn.modules.linear.Identity",
        "torch.nn.modules.pooling.MaxPool2d",
    }
)

_NODES = ["Any", "Boolean", "Bytes", "Enum", "Float", "Integer", "Path", "String"]
_INERT = {
    *MODULES,
    "argparse.Namespace",
    "builtins.bool",
    "builtins.dict",
    "builtins.float",
    "builtins.frozenset",
    "builtins.getattr",  # mmengine's histories name methods so; here it looks nothing up
    "builtins.int",
    "builtins.list",
    "builtins.object",
    "builtins.range",
    "builtins.slice",
    "builtins.str",
    "builtins.tuple",
    "datetime.date",
    "datetime.datetime",
    "datetime.timedelta",
    "datetime.timezone",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "examples.data2vec.data.modality.Modality",
    "fairseq.data.dictionary.Dictionary",
    "mmengine.config.config.Config",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy.dtype",
    "numpy.ndarray",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    *(f"omegaconf.nodes.{name}Node" for name in _NODES),
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib.PurePath",
    "pathlib.PurePosixPath",
    "pathlib.PureWindowsPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",  # of Python 3.13
    "pathlib._local.WindowsPath",
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "torch.torch_version.TorchVersion",
    "types.SimpleNamespace",
    "typing.Any",
    "uuid.UUID",
}

STAND_INS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(_INERT, Stored),
    "addict.addict.Dict": OrderedDict,
    "collections.defaultdict": _dict,
    "collections.deque": _list,
    "easydict.EasyDict": OrderedDict,
    "fvcore.common.config.CfgNode": OrderedDict,
    "lightning.fabric.utilities.data.AttributeDict": OrderedDict,
    "lightning_fabric.utilities.data.AttributeDict": OrderedDict,
    "mmcv.utils.config.ConfigDict": OrderedDict,
    "mmengine.config.config.ConfigDict": OrderedDict,
    "pytorch_lightning.utilities.parsing.AttributeDict": OrderedDict,
    "yacs.config.CfgNode": OrderedDict,
}
DICTS = frozenset(
    {"collections.OrderedDict", "collections.Counter"}
    | {name for name, made in STAND_INS.items() if made in (OrderedDict, _dict)}
)
LISTS = frozenset({"collections.deque"})
