"""Gets the file of an entry: out of the cache, or from the first of its mirrors that has it."""

from __future__ import annotations

from pathlib import Path

from mimbench.checkpoint import sha256
from mimbench.download import fetch
from mimbench.errors import UserError
from mimbench.weights.entry import Entry, Mirror


def obtain(entry: Entry) -> tuple[Path, Mirror]:
    """The file and the mirror it is of. Raises UserError where no mirror has it whole, naming each reason."""
    reasons = []
    for mirror in entry.mirrors:
        try:
            path = fetch(mirror.url)
        except UserError as error:
            reasons.append(str(error))
            continue
        if mirror.sha256 and sha256(path) != mirror.sha256:
            reasons.append(f"{mirror.url} gave another file (its sha256 is not {mirror.sha256[:12]}…)")
            continue
        return path, mirror
    by_hand = f"fetch it by hand from {entry.page} and run" if entry.page else "with the file at hand, run"
    said = "; ".join(reasons) or "it can be fetched by hand only"
    raise UserError(f"{entry.name}: {said}; {by_hand} mimbench weights convert PATH --as {entry.name}")
