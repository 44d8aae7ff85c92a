"""The survey's taxonomy as data: its criteria, their classes, what each class means and where it is from.

The classes are those of "Masked Image Modeling: A Survey" (Hondru, Croitoru, Minaee, Ionescu, Sebe;
arXiv:2408.06687, IJCV 2025), described here in our own words. Where a work does not fit any of them we add
a class of our own, whose ``source`` says so. Several classes are joined by " + ", as in "pixels + hog".
Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from mimbench.errors import UserError, unknown

SURVEY = "arXiv:2408.06687"
OWN = "not in the survey"
JOIN = " + "


@dataclass(frozen=True)
class Class:
    """One class of a criterion: the word cards use, its meaning, and where the survey draws it."""

    name: str
    meaning: str
    source: str


@dataclass(frozen=True)
class Criterion:
    """One question that works are told apart by. ``classes`` in the order in which they are listed."""

    name: str
    question: str
    classes: tuple[Class, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The words a card may use."""
        return tuple(known.name for known in self.classes)

    def split(self, text: str) -> tuple[str, ...]:
        """The classes that ``text`` names, once each, in this criterion's order.

        Raises UnknownNameError for a word outside the vocabulary, UserError for an empty text.
        """
        words = [word.strip() for word in text.split("+")]
        for word in words:
            if word not in self.names:
                raise unknown(f"class of {self.name}", word, self.names)
        if "none" in words and len(set(words)) > 1:
            raise UserError(f"{self.name} {text!r} says none and something; leave one of them out")
        return tuple(name for name in self.names if name in words)

    def tidy(self, text: str) -> str:
        """``text`` with its classes in order. Raises as ``split``."""
        return JOIN.join(self.split(text))


SCHEME = Criterion(
    "scheme",
    "what is a prediction compared with?",
    (
        Class(
            "reconstruction",
            "with the hidden input, or with what a fixed function or a foreign network makes of it",
            "section 2, algorithm 1",
        ),
        Class(
            "contrastive",
            "with what the same network, or its moving average, makes of another or fuller view; "
            "regression of such a latent counts too",
            "section 2, algorithm 2",
        ),
        Class("both", "a term of each kind", "section 2"),
        Class("none", "no masked prediction: theory, supervised training, other tasks", OWN),
    ),
)
MASKING = Criterion(
    "masking",
    "how is it decided what is hidden?",
    (
        Class("random", "by a draw that does not look at the image: patches, blocks, tubes", "figure 5"),
        Class(
            "network-guided",
            "by a network: attention, part maps, predicted loss, a learned masker",
            "figure 5",
        ),
        Class(
            "signal-guided",
            "by classical features: gradients, superpixels, frequencies, coloured noise, motion",
            "figure 5",
        ),
        Class("none", "nothing is hidden, or the work decides nothing about it", OWN),
    ),
)
TARGET = Criterion(
    "target",
    "what is to be predicted?",
    (
        Class("pixels", "low level: values of the input (pixels, voxels, spectrograms)", "figure 8"),
        Class("tokens", "low level: indices in the codebook of a tokenizer", "figure 8"),
        Class("geometry", "low level: coordinates, depth, normals, occupancy", "figure 8"),
        Class("hog", "low level: histograms of oriented gradients", "figure 8"),
        Class("spectrum", "low level: Fourier coefficients", "figure 8"),
        Class("frozen teacher", "high level: features of a network that does not learn along", "figure 8"),
        Class("trained teacher", "high level: features of a teacher that learns along (EMA)", "figure 8"),
        Class("own features", "high level: features of the learner itself, without a moving average", OWN),
        Class("labels", "class labels or annotated maps", OWN),
        Class("other", "something else: text, positions, actions, diffusion noise", OWN),
        Class("none", "nothing of its own", OWN),
    ),
)
ARCHITECTURE = Criterion(
    "architecture",
    "which kind of network learns?",
    (
        Class("plain transformer", "one resolution throughout, mostly with a light decoder", "section 2"),
        Class("hierarchical", "a transformer whose resolution falls in stages", "section 3.6"),
        Class("convolutional", "a convolutional network, dense or sparse", "section 3.6"),
        Class("masked convolution", "convolutions that leave out what is hidden", "section 3.6"),
        Class("sparse or experts", "parts of the network per input: sub-networks, experts", "section 3.6"),
        Class("reversible", "columns that can be run backwards", "section 3.6"),
        Class("fusion", "encoders of several modalities joined", "section 3.6"),
        Class("any network", "the work does not depend on it", OWN),
        Class("other", "another kind of network", OWN),
        Class("none", "no network of its own", OWN),
    ),
)
OBJECTIVE = Criterion(
    "objective",
    "which loss is minimised?",
    (
        Class("reconstruction", "a distance to the target: L1, L2, cosine, of relations KL", "figure 10"),
        Class("contrastive", "telling the match from others (InfoNCE mostly)", "figure 10"),
        Class("classification", "cross-entropy over tokens, pseudo-labels or labels", "figure 10"),
        Class("other", "a further term: adversarial, ranking, uniformity, consistency", OWN),
        Class("none", "no loss of its own", OWN),
    ),
)
CONTRIBUTION = Criterion(
    "contribution",
    "under which headings does the survey discuss the work?",
    tuple(
        Class(name, f"what is new is {meaning}", "section 3")
        for name, meaning in (
            ("masking", "the masking strategy"),
            ("target", "the target features"),
            ("architecture", "the architecture"),
            ("objective", "the objective"),
            ("task", "the downstream task"),
            ("theory", "the theoretical analysis"),
        )
    ),
)
CRITERIA = {
    criterion.name: criterion
    for criterion in (SCHEME, MASKING, TARGET, ARCHITECTURE, OBJECTIVE, CONTRIBUTION)
}
