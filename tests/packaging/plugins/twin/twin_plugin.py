"""Takes names that mimbench's own already have."""

from method_zoo.mae import MAE
from protocols.linprobe import LinearProbe


class Other(MAE):
    card = MAE.card.model_copy(update={"name": "Another MAE"})


class OtherProtocol(LinearProbe):
    key = LinearProbe.key


def digits(argument):
    raise AssertionError("must not be opened")


def backbone(name, image_size, **options):
    raise AssertionError("must not be built")
