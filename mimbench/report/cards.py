"""What a record says of its method: the card that was in force when it was pre-trained (``spec.Card``)."""

from __future__ import annotations

import re
from functools import cached_property

from pydantic import BaseModel, ConfigDict

from mimbench.spec import content_hash

ARXIV = re.compile(
    r"\d{4}\.\d{4,5}|[a-z-]+(\.[A-Z]{2})?/\d{7}"
)  # https://info.arxiv.org/help/arxiv_identifier.html

PARITY = {
    "verified": "Its loss equals that of the official code on the same weights, image and mask.",
    "not compared": "Not compared: there is official code, but no figures of it to hold its loss against.",
    "no official code": "There is no official code: it follows the paper alone.",
    "own formulas": "Not the published formulas, which the paper does not give; see the notes.",
    "released": "Its loss is not compared: these weights were trained by others.",
    "baseline": "A baseline: there is no published loss to equal.",
}
CRITERIA = ("scheme", "masking", "target", "architecture", "objective")  # of the survey's taxonomy
EXTERNAL = {
    "none": "nothing but images",
    "tokenizer": "a tokenizer",
    "teacher": "a teacher",
    "labels": "labels",
}


class Filed(BaseModel):
    """The survey's classes of a method, see ``spec.Classes``."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    masking: str = ""
    target: str = ""
    architecture: str = ""
    objective: str = ""


class MethodCard(BaseModel):
    """The part of ``spec.Card`` that people read. Cards of later versions may say more, which is skipped."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    key: str
    name: str
    version: int = 1
    paper: str = ""
    authors: str = ""
    year: int | None = None
    arxiv: str = ""
    code: str = ""
    scheme: str = ""
    masking: str = ""
    target: str = ""
    architecture: str = ""
    objective: str = ""
    classes: Filed | None = None  # None: not filed
    external: str = "none"
    parity: str = ""
    recipe: str | None = None  # where the published one is from; None: never trained
    notes: str = ""

    @cached_property
    def anchor(self) -> str:
        """Its place on the page: equal for equal cards."""
        return f"card-{content_hash(self.model_dump(), 12)}"

    @property
    def paper_link(self) -> str:
        """Of its page on arXiv; "" where the number is none."""
        return f"https://arxiv.org/abs/{self.arxiv}" if ARXIV.fullmatch(self.arxiv) else ""

    @property
    def code_link(self) -> str:
        """Of the official code; "" for anything but a web address."""
        return self.code if self.code.startswith("https://") else ""

    @property
    def taxonomy(self) -> list[tuple[str, str, str]]:
        """(criterion, the survey's class, more precisely) of "Masked Image Modeling: A Survey"
        (arXiv:2408.06687)."""
        return [(name, getattr(self.classes, name, ""), getattr(self, name)) for name in CRITERIA]

    def filed(self, criterion: str) -> tuple[str, ...]:
        """Its classes in one criterion of the taxonomy, for filters."""
        text = self.scheme if criterion == "scheme" else getattr(self.classes, criterion, "")
        return tuple(part for part in text.split(" + ") if part)

    @property
    def uses(self) -> str:
        """What its pre-training is given besides the images, in words."""
        return EXTERNAL.get(self.external, self.external)

    @property
    def equality(self) -> str:
        """How much its loss is known to be the published one, in words."""
        return PARITY.get(self.parity, self.parity)
