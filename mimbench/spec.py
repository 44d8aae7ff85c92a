"""The vocabulary as data: what is asked for, what is done and what came out. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from mimbench import taxonomy

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)

External = Literal["none", "tokenizer", "teacher", "labels"]
# How much a method's loss is known to be the published one: tested against the official code; official code
# exists but no figures of it; nothing but the paper; not even the paper's formulas; nothing to equal.
# Or: trained by others, so that no loss was computed here.
Parity = Literal["verified", "not compared", "no official code", "own formulas", "baseline", "released"]
Role = Literal["method", "floor", "ceiling", "tokenizer"]


def canonical(content: Any) -> str:
    """JSON with sorted keys and no spaces; equal contents give equal text. NaN is refused."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def content_hash(content: Any, length: int = 16) -> str:
    """The first ``length`` hex digits of the SHA-256 of ``content``'s canonical JSON."""
    return hashlib.sha256(canonical(content).encode()).hexdigest()[:length]


class Frozen(BaseModel):
    """Base of all data here: frozen, and a misspelt field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Spec(Frozen):
    """Base of what goes into a job's content."""

    def content(self) -> dict[str, Any]:
        """The fields as plain JSON data."""
        return self.model_dump(mode="json")


class Augmentation(Spec):
    """What a training image goes through: random resized crop, flip, colours, blur, RandAugment.

    Colour jitter, grey, blur and solarisation are those of SimCLR (arXiv:2002.05709) and BYOL
    (arXiv:2006.07733).
    """

    crop: Literal["area", "square"] = "area"  # "square": the largest one, at a random place
    crop_scale: tuple[float, float] = (0.2, 1.0)  # share of the area
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    flip: bool = True
    color_jitter: float = 0.0  # strength of brightness, contrast and saturation
    saturation: float | None = None  # its own strength, where it differs
    hue: float = 0.0  # strength, in turns of the colour wheel
    jitter_probability: float = 1.0
    grayscale: float = 0.0  # probability
    blur: float = 0.0  # probability of a Gaussian with a sigma in [0.1, 2] pixels at 224
    solarize: float = 0.0  # probability of inverting what is brighter than half
    rand_augment: str = ""  # timm's notation, such as rand-m9-mstd0.5-inc1 (arXiv:1909.13719); "": none
    fill: tuple[int, int, int] | None = None  # grey levels where RandAugment moves an image away; None: 128

    @model_serializer(mode="wrap")
    def _without_what_came_later(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out fields that were added later while at their defaults: ids of earlier jobs stay."""
        later = {"rand_augment": "", "fill": None}
        return {k: v for k, v in handler(self).items() if k not in later or v != later[k]}

    @property
    def recolours(self) -> bool:
        """Whether it does more to a crop than resize and flip it."""
        return any((self.color_jitter, self.saturation, self.hue, self.grayscale, self.blur, self.solarize))


class View(Spec):
    """One more crop of a training image, for methods that compare crops (``Method.views``).

    crop: "own" draws its own place and flip; "same" takes those of the first crop, so that the two are
    aligned pixel by pixel; "shifted" takes those of the first and moves the place by up to ``shift`` of
    its sides in each direction, staying inside the image.
    """

    augmentation: Augmentation = Augmentation()
    image_size: int = Field(gt=0)  # side in pixels
    crop: Literal["own", "same", "shifted"] = "own"
    shift: float = Field(0.0, ge=0, lt=1)


class Recipe(Spec):
    """An optimisation recipe. Durations are shares of the run, so that short runs keep its shape."""

    base_lr: float
    lr_rule: Literal["per_256", "per_512", "absolute"] = "per_256"
    batch_size: int  # the effective batch it was published with
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.05
    weight_decay_end: float | None = None  # reached along half a cosine from more than 0; None: it stays
    warmup: float = Field(0.05, ge=0, lt=1)  # share of the run; published warm-up / published epochs
    warmup_start_lr: float = 0.0
    schedule: Literal["cosine", "multistep"] = "cosine"
    milestones: tuple[float, ...] = ()  # multistep: shares of the run after which lr falls tenfold
    min_lr: float = 0.0  # absolute, at the published batch
    clip_grad: float | None = None
    drop_path: float = 0.0
    augmentation: Augmentation = Augmentation()
    source: str

    def lr(self, batch_size: int) -> float:
        """Peak learning rate at an effective ``batch_size``, by this recipe's own rule."""
        if self.lr_rule == "absolute":
            # A published absolute rate belongs to the published batch; linear scaling keeps its meaning.
            return self.base_lr * batch_size / self.batch_size
        return self.base_lr * batch_size / (256 if self.lr_rule == "per_256" else 512)


class Readout(Spec):
    """How tokens become one vector: which layer, which norm, which token."""

    layer: int = Field(-1, le=-1)  # counted from the end: -1 is the last block
    norm: Literal["final", "raw"] = "final"  # through the encoder's final norm, or as the block left it
    token: Literal["cls", "mean", "cls+mean"] = "mean"

    @property
    def label(self) -> str:
        return f"{self.token}@{self.layer}" + ("" if self.norm == "final" else "/raw")

    @property
    def parts(self) -> tuple[Readout, ...]:
        """The single-token readouts it is a concatenation of."""
        return tuple(self.model_copy(update={"token": t}) for t in self.token.split("+"))


class Classes(Frozen):
    """Where the survey's taxonomy files a method, in the words of ``mimbench.taxonomy``.

    Several classes are joined by " + ". What a card says of the same things in free text is more precise.
    """

    masking: str
    target: str
    architecture: str
    objective: str

    @field_validator("*")
    @classmethod
    def _known(cls, text: str, info: ValidationInfo) -> str:
        return taxonomy.CRITERIA[str(info.field_name)].tidy(text)


class Card(Spec):
    """What is known of a method: where it comes from, where the survey files it, how it is trained."""

    key: str
    name: str
    paper: str  # title
    authors: str = ""
    year: int | None = None
    arxiv: str = ""
    code: str = ""  # official repository
    role: Role = "method"
    # taxonomy of "Masked Image Modeling: A Survey" (arXiv 2408.06687): its classes, then the same precisely
    scheme: Literal["reconstruction", "contrastive", "both", "none"]
    masking: str
    target: str
    architecture: str
    objective: str
    classes: Classes | None = None  # None: not filed, as a plug-in's may be
    external: External = "none"
    version: int = 1  # raised whenever the same settings give another result
    recipe: Recipe | None  # None: never trained
    readout: Readout = Readout()
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    backbone: dict[str, Any] = {}  # architecture options the method asks of the backbone
    parity: Parity
    notes: str = ""  # where official code and paper part, and which this follows

    @model_validator(mode="after")
    def _complete(self) -> Card:
        if self.role == "method" and not (self.arxiv and self.recipe and self.year):
            raise ValueError(f"the card of {self.key!r} lacks its arXiv number, year or recipe")
        return self

    def facts(self) -> dict[str, Any]:
        """As a record keeps it, for pages that import no method: of the published recipe the source only,
        since the record's content holds the recipe that was used."""
        return {**self.content(), "recipe": self.recipe.source if self.recipe else None}


class Budget(Spec):
    """How long pre-training lasts."""

    unit: Literal["epochs", "images", "flops", "hours"] = "epochs"
    amount: float = Field(gt=0)

    def __str__(self) -> str:
        return f"{self.amount:g} {self.unit}"


LABEL = (
    "{data} · {image_size} px · {backbone} · {budget} · {recipe} recipe · batch {batch_size} · {precision}"
)
LABEL_RELEASED = "{data} · {image_size} px · {backbone} · released weights · {precision}"
AS_RELEASED = "as released"  # what stands for how long and by what recipe others trained


class Setting(Spec):
    """Everything held identical across the rows of one table.

    budget, recipe and batch_size are None together: for weights that others trained, each in its own way.
    """

    data: str  # the dataset's name, for people
    fingerprint: str  # of all splits' content, for identity
    image_size: int = Field(gt=0)
    backbone: str
    budget: Budget | None
    recipe: Literal["paper", "shared"] | None
    batch_size: Annotated[int, Field(gt=0)] | None  # effective: over accumulation and processes
    precision: Literal["fp32", "bf16", "fp16"]

    @model_validator(mode="after")
    def _trained_or_released(self) -> Setting:
        if len({value is None for value in (self.budget, self.recipe, self.batch_size)}) > 1:
            raise ValueError("budget, recipe and batch_size are given together or not at all")
        return self

    @classmethod
    def of_released(cls, **known: Any) -> Setting:
        """The setting of weights that others trained: what of it was ours to hold equal is ``known``."""
        return cls(budget=None, recipe=None, batch_size=None, **known)

    @property
    def released(self) -> bool:
        """Whether its rows were trained elsewhere, each by its own recipe and for as long as it was."""
        return self.budget is None

    @property
    def training(self) -> tuple[Budget, int]:
        """Budget and batch of what is trained here; ValueError where nothing is."""
        if self.budget is None or self.batch_size is None:
            raise ValueError("released weights are not trained here")
        return self.budget, self.batch_size

    def identity(self) -> dict[str, Any]:
        """What decides results: all but the dataset's name, which a moved folder changes."""
        return {name: value for name, value in self.content().items() if name != "data"}

    @property
    def label(self) -> str:
        return labelled(self.words(), self.released)

    def words(self) -> dict[str, str]:
        """Its fields as people read them."""
        return {name: AS_RELEASED if value is None else str(value) for name, value in self}


def labelled(words: Mapping[str, str], released: bool) -> str:
    """A setting on one line, out of its fields as people read them."""
    return (LABEL_RELEASED if released else LABEL).format(**words)


class Job(Frozen):
    """One unit of work. ``content`` is all that decides its result; ``needs`` are ids of jobs it feeds on."""

    kind: Literal["tokenizer", "pretrain", "evaluate"]
    name: str  # for people: "mae[mask_ratio=0.9] seed 0"
    content: dict[str, Any]
    needs: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """A hash of all that decides the result."""
        content = dict(self.content)
        if "data" in content:  # its name is for people, as the setting's
            content["data"] = content["data"]["fingerprint"]
        if "setting" in content:
            content["setting"] = Setting.model_validate(content["setting"]).identity()
        return content_hash({"kind": self.kind, "content": content, "needs": sorted(self.needs)})


FORMAT = 1  # of a record file; raised when an older reader would misread it


class Record(Frozen):
    """The JSON result of one job: the truth that tables are derived from."""

    format: int = FORMAT
    id: str  # the job's
    kind: Literal["tokenizer", "pretrain", "evaluate"]
    name: str
    status: Literal["done", "failed"]
    error: str | None = None  # one sentence, when failed
    traceback: str | None = None
    content: dict[str, Any]  # the job's
    needs: dict[str, str] = {}  # needed job id -> sha256 of the product that was used
    product: dict[str, str] = {}  # file name -> sha256
    metrics: dict[str, float] = {}
    outcomes: dict[str, Any] = {}  # per-sample results, see outcomes.Outcomes.pack
    selection: dict[str, Any] = {}  # candidates, their validation scores, the one chosen
    cost: dict[str, Any] = {}  # see cost.Cost
    curve: list[dict[str, float]] = []  # learning curve
    facts: dict[str, Any] = {}  # what the method says of itself, see Method.description
    data: dict[str, Any] = {}  # split fingerprints, sizes, skipped files
    environment: dict[str, Any] = {}
    started: str  # ISO 8601, UTC
    finished: str

    @property
    def metric(self) -> str:
        """The name of its headline number, "" where it has none."""
        return str(self.facts.get("metric") or next(iter(self.metrics), ""))
