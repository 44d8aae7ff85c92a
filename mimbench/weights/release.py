"""What is known of weights that were trained elsewhere, as records, tables and reports say it. No torch."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from mimbench.spec import External
from mimbench.weights.entry import trained_on

OWN_ORIGIN = "mimbench"  # of files that mimbench wrote, and converted from nothing


class Release(BaseModel):
    """A released file, or one that its user has trained; what is not known is left empty.

    name: of the entry it was converted as, "" for a user's own. origin: the family of layouts it is of.
    image_size: in pixels, that it was trained on or converted for. dropped, fresh: see ``Conversion``.
    figures: keys by which ``mimbench.published`` has its figures, see ``Entry``. For the rest see ``Entry``.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str = ""
    title: str = ""
    paper: str = ""
    arxiv: str = ""
    code: str = ""
    data: str = ""
    epochs: float | None = None
    image_size: int | None = None
    external: External = "none"
    learned_from: str = ""
    labels: bool = False
    licence: str = ""
    url: str = ""
    source: str = ""
    notes: str = ""
    figures: dict[str, str] = {}
    file: str = ""
    file_sha256: str = ""
    origin: str = ""
    origin_version: int = 1
    dropped: dict[str, str] = {}
    fresh: dict[str, str] = {}

    @property
    def trained_on(self) -> str:
        """ "ImageNet-1K, 1600 epochs", as far as known."""
        return trained_on(self.data, self.epochs)

    @property
    def layout(self) -> str:
        """The family it is of and the version of what reads it: "mae@1"."""
        return f"{self.origin}@{self.origin_version}" if self.origin else ""


def today(release: dict[str, Any]) -> dict[str, Any]:
    """``release`` as a file has it, with what the catalogue says of its entry by now.

    What is known of a file may be corrected after it was converted; what was done to its tensors stays.
    """
    from mimbench.weights.entries import entries

    entry = entries().get(release.get("name", ""))
    return {**release, **entry.facts()} if entry is not None else release


def card_of(method: str, release: dict[str, Any]) -> dict[str, Any]:
    """The card of a method as records keep it: the zoo's, else what the release tells of it."""
    from mimbench import registry

    cls = registry.methods().get(method)
    if cls is not None:
        return cls.card.facts()
    told = Release.model_validate(release)
    return {
        "key": method,
        "version": 1,
        "name": told.title or method,
        "paper": told.paper,
        "arxiv": told.arxiv,
        "code": told.code,
        "external": told.external,
        "parity": "released",
    }
