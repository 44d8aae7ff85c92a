"""What a method hides and what pixels it predicts, for people to look at; nobody watches while it trains.

with watching(method) as seen:
    method(images, step)
seen.mask, seen.pixels
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from mimbench.method import Method


@dataclass
class Seen:
    """What was seen of one batch; None where there was nothing of the kind.

    mask: bool [B, N], the patches hidden from the encoder. inputs: what the encoder was given, normalised
    [B, 3, H, W]. pixels: what was predicted, normalised [B, 3, H, W], NaN where nothing was.
    true_statistics: whether each predicted patch got the mean and variance of the true one, because the
    method predicts pixels in units of these.
    """

    mask: Tensor | None = None
    inputs: Tensor | None = None
    pixels: Tensor | None = None
    true_statistics: bool = False


_watcher: ContextVar[Seen | None] = ContextVar("watcher", default=None)


@contextmanager
def watching(method: Method) -> Iterator[Seen]:
    """What ``method`` hides and predicts within the block, of the first batch it is called with."""
    seen = Seen()
    token = _watcher.set(seen)
    encode: Callable[..., Any] = method.encoder.encode

    def watched(images: Tensor, mask: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        if seen.inputs is None or (seen.mask is None and mask is not None):
            seen.inputs, seen.mask = images.detach(), mask
        return encode(images, mask, *args, **kwargs)

    method.encoder.encode = watched  # type: ignore[assignment]
    try:
        yield seen
    finally:
        del method.encoder.encode  # the class's own shows again
        _watcher.reset(token)


def note_pixels(make: Callable[[], Tensor], true_statistics: bool = False) -> None:
    """Show predicted pixels to whoever watches. make: gives them, see ``Seen``; not called for nobody."""
    seen = _watcher.get()
    if seen is not None and seen.pixels is None:
        seen.pixels, seen.true_statistics = make().detach().float(), true_statistics
