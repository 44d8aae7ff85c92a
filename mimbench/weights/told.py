"""What became of a file that was converted, in one line."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mimbench import checkpoint
from mimbench.weights.convert import listed


def sentence(path: Path, name: str) -> str:
    """ "mae@vit_base: 150 tensors used; dropped mask_token; none fresh; PATH"."""
    release = checkpoint.read_metadata(path).get("release", {})
    used, dropped, fresh = (list(release.get(part, ())) for part in ("used", "dropped", "fresh"))
    return f"{name}: {len(used)} tensors used; {_some('dropped', dropped)}; {_some('fresh', fresh)}; {path}"


def _some(what: str, names: Iterable[str]) -> str:
    names = list(names)
    return f"{what} {len(names)} ({listed(names)})" if names else f"none {what}"
