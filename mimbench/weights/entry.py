"""One released file as data: what it is, where it lies, what is known of it. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from mimbench.spec import IMAGENET_MEAN, IMAGENET_STD, External, Readout, Spec

NAME = r"^[a-z][a-z0-9_]*@[a-z0-9][a-z0-9_.\-]*$"


class Mirror(Spec):
    """A place to fetch a file from.

    url: ``https://…``, ``hf:OWNER/REPO/FILE`` (the Hugging Face hub, at ``revision``) or ``gdrive:ID``.
    origin: of the file there, where it is of another layout than the entry's (the same weights, written anew
    by somebody else's code); its checksum and size then belong to it alone.
    """

    url: str = Field(pattern=r"^(https?://\S+|hf:[^/\s]+/[^/\s]+/\S+|gdrive:[\w-]+)$")
    revision: str = "main"
    sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""  # "": not known
    size: Annotated[int, Field(gt=0)] | None = None  # bytes
    origin: str = ""
    container: tuple[str, ...] | None = None


class Entry(Spec):
    """A released file.

    name: METHOD@BACKBONE, with what sets it apart behind a dash where a method has several of that backbone:
    ``mae@vit_base``, ``beit@vit_base-pt1k``. ViTs with patches of 16 pixels leave them out of the name.
    title, paper, arxiv, code: of methods that the zoo does not have; otherwise its card says them.
    backbone: as ``registry.build_backbone`` takes it. options: of the backbone, beside those of the origin.
    origin: the family of files whose layout it has, a module of ``method_zoo.weights``.
    container: keys under which the state dict lies in the file, outermost first; None: the origin's.
    data, epochs: of pre-training. external: the most that pre-training was told beside the images, by the
    data set's labels or through whatever it learned from. learned_from: in words, such as the tokenizer.
    labels: whether the encoder was itself trained on labels, as by fine-tuning after pre-training.
    mirrors: in the order in which they are tried. page: for people, where no mirror can be fetched from.
    readout, mean, std: of the official fine-tuning, as on a method's card; protocols that try several
    readouts, such as linprobe, do so for every row.
    figures: keys by which ``mimbench.published`` has its figures, where they are not method, backbone and
    epochs themselves: {"variant": "…"}.
    source: where these facts were read. notes: what a user would trip over.
    """

    name: str = Field(pattern=NAME)
    title: str = ""
    paper: str = ""
    arxiv: str = ""
    code: str = ""
    backbone: str
    image_size: int = Field(224, gt=0)
    options: dict[str, Any] = {}
    origin: str
    container: tuple[str, ...] | None = None
    data: str
    epochs: Annotated[float, Field(gt=0)] | None = None
    external: External = "none"
    learned_from: str = ""
    labels: bool = False
    mirrors: tuple[Mirror, ...] = ()
    page: str = Field("", pattern=r"^(https?://\S+)?$")
    licence: str
    readout: Readout = Readout()
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    figures: dict[str, str] = {}
    source: str
    notes: str = ""

    @model_validator(mode="after")
    def _complete(self) -> Entry:
        if not self.mirrors and not self.page:
            raise ValueError(f"{self.name} has no mirror and no page to fetch it from by hand")
        if self.labels and self.external != "labels":
            raise ValueError(f"{self.name} saw labels, so external is labels")
        return self

    def facts(self) -> dict[str, Any]:
        """What people are told of its weights, wherever they are used; no part of what is computed."""
        told = self.model_dump(
            mode="json",
            include={
                *("name", "title", "paper", "arxiv", "code", "data", "epochs", "external", "learned_from"),
                *("labels", "licence", "figures", "source", "notes"),
            },
        )
        return told | {"url": self.page or next((mirror.url for mirror in self.mirrors), "")}

    @property
    def trained_on(self) -> str:
        """Data and time of its pre-training in words, see ``trained_on``."""
        return trained_on(self.data, self.epochs)

    @property
    def method(self) -> str:
        """The key of the method, in the zoo or of the same form."""
        return self.name.partition("@")[0]


def trained_on(data: str, epochs: float | None) -> str:
    """ "ImageNet-1K, 1600 epochs", as far as known."""
    return ", ".join(part for part in (data, f"{epochs:g} epochs" if epochs else "") if part)
