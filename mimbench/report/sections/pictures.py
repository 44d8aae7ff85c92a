"""Pictures that ``mimbench show`` drew of rows of this page, inside the page."""

from __future__ import annotations

import base64
import io
import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup
from PIL import Image

from mimbench.report.sections.surroundings import Surroundings
from mimbench.report.tables import Table
from mimbench.show import KINDS
from mimbench.show.caption import Caption, read_caption

MOST_BYTES = 8 * 2**20  # of all embedded pictures together: the page is still opened in no time and mailed
WIDEST = 1100  # pixels; a wider picture is scaled down, since nothing on the page is shown wider
QUALITY = 80  # of WebP, which takes about a tenth of what PNG takes for photographs


class Shown(NamedTuple):
    caption: Caption
    address: str  # of the PNG file, in full size
    source: str  # data: URI
    width: int
    height: int


def draw(tables: Sequence[Table], surroundings: Surroundings) -> Markup:
    """Empty where the results folders have no pictures of these rows."""
    jobs = {job for table in tables for row in table.rows for job in row.trained.values()}
    found = [one for folder in surroundings.folders for one in _captioned(folder / "pictures", jobs)]
    kinds: dict[str, list[Shown]] = defaultdict(list)
    left_out = []
    room = MOST_BYTES
    for path, caption, picture in found:
        encoded = _encoded(picture)
        if encoded is None or len(encoded.content) > room:
            left_out.append((caption.title, surroundings.address(path)))
            continue
        room -= len(encoded.content)
        source = "data:image/webp;base64," + base64.b64encode(encoded.content).decode()
        shown = Shown(caption, surroundings.address(path), source, encoded.width, encoded.height)
        kinds[caption.kind].append(shown)
    if not found:
        return Markup("")
    return surroundings.render(
        "pictures.html",
        kinds=[(KINDS.get(kind, kind), kinds[kind]) for kind in sorted(kinds, key=_place)],
        left_out=left_out,
        megabytes=MOST_BYTES // 2**20,
    )


def _captioned(folder: Path, jobs: set[str]) -> list[tuple[Path, Caption, bytes]]:
    """The pictures whose captions say that they show rows of this page, and of no other; by kind and name."""
    found = []
    for path in sorted(folder.glob("*.png")):
        caption = read_caption(path)
        if caption is None or not caption.jobs or not set(caption.jobs) <= jobs:
            continue
        content = path.read_bytes()
        if caption.matches(content):
            found.append((path, caption, content))
    return sorted(found, key=lambda one: (_place(one[1].kind), one[0].name))


def _place(kind: str) -> tuple[int, str]:
    """In the order in which ``show`` draws them, others after."""
    return (list(KINDS).index(kind) if kind in KINDS else len(KINDS), kind)


class Encoded(NamedTuple):
    content: bytes
    width: int
    height: int


def _encoded(picture: bytes) -> Encoded | None:
    """As WebP, no wider than ``WIDEST``; None for what is no picture or, unpacked, would fill the memory."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            opened = Image.open(io.BytesIO(picture), formats=("PNG",))
        with opened:
            image = opened.convert("RGB")
    except (OSError, Image.DecompressionBombWarning, Image.DecompressionBombError):
        return None
    if image.width > WIDEST:
        image = image.resize((WIDEST, round(image.height * WIDEST / image.width)), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY, method=3)
    return Encoded(buffer.getvalue(), *image.size)
