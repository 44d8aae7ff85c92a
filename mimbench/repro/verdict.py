"""Whether a record and its repetition say the same. Imports no torch."""

from __future__ import annotations

import math
from typing import Literal

from mimbench import stats
from mimbench.outcomes import unpack
from mimbench.report import text
from mimbench.repro.differences import Difference, shown
from mimbench.repro.gap import Gap, gap
from mimbench.spec import Frozen, Record

Answer = Literal["same", "within interval", "different"]
# Of a training's product the file with every tensor, ``mimbench.train.METHOD_FILE``: where it is equal, so
# are the weights in the other files, whose headers may have been written by other code.
WHOLE = "method.safetensors"


class Verification(Frozen):
    """What came out when a record was checked.

    answer: "same" bit for bit; "within interval" where the new number lies inside the record's interval over
    test images or the paired test cannot tell the two apart; "different" otherwise.
    differences: in what the two surroundings differ, the first the one to look at. repeated: False where the
    record contradicts itself, so that there was nothing to repeat.
    """

    format: int = 1
    record: str
    name: str
    file: str
    answer: Answer
    sentences: tuple[str, ...]
    repeated: bool = True
    then: dict[str, float] = {}
    now: dict[str, float] = {}
    gap: Gap | None = None
    differences: tuple[Difference, ...] = ()
    seconds: float = 0.0
    folder: str = ""  # where the repetition was kept

    @property
    def first_difference(self) -> str:
        """The first setting, version or machine that differs; "" where none is known to."""
        return self.differences[0].text if self.differences else ""


def judge(
    then: Record, now: Record, trained: tuple[Record | None, Record | None] = (None, None)
) -> tuple[Answer, list[str], Gap | None]:
    """The answer, why, and the gap between the two numbers where there is one.

    trained: the records of the pre-training that an evaluation was made from, then and now.
    """
    if "failed" in (then.status, now.status):
        return (*_failures(then, now), None)
    if then.kind != "evaluate":
        return (*_products(then, now), None)
    sentences = [_weights(then, now, *trained)]
    apart = [
        f"{name} was {text.number(then.metrics[name])}, is {text.number(now.metrics[name])}"
        for name in then.metrics
        if name in now.metrics and then.metrics[name] != now.metrics[name]
    ]
    if not apart and _same_outcomes(then, now):
        return "same", ["every per-image outcome and every metric is equal", *sentences], None
    found = gap([then], [now])
    if isinstance(found, str):
        return "different", [*apart, found, *sentences], None
    told = _told(found)
    if found.b_inside or not found.told_apart:
        return "within interval", [told, *sentences], found
    return "different", [told, *sentences], found


def _failures(then: Record, now: Record) -> tuple[Answer, list[str]]:
    if then.status == now.status:
        if then.error == now.error:
            return "same", [f"it fails in the same way: {then.error}"]
        return "different", [f"it failed with: {then.error}", f"and fails now with: {now.error}"]
    if then.status == "failed":
        return "different", [f"it failed with: {then.error}", "and does not fail now"]
    return "different", [f"it was done, and fails now with: {now.error}"]


def _products(then: Record, now: Record) -> tuple[Answer, list[str]]:
    equal, said = _equal_products(then, now)
    if equal:
        return "same", [f"the weights are equal bit for bit: {said}"]
    sentences = [f"the weights differ: {said}"]
    if then.curve and now.curve:
        last = [f"{record.curve[-1].get('loss', math.nan):.6g}" for record in (then, now)]
        alike = "is equal at every step" if then.curve == now.curve else "differs"
        sentences.append(f"the learning curve {alike}; it ends at a loss of {last[0]} then, {last[1]} now")
    sentences.append("how much that matters, only an evaluation says: verify the record of one")
    return "different", sentences


def _equal_products(then: Record, now: Record) -> tuple[bool, str]:
    """Whether two trainings gave the same tensors, and what says so."""
    files = {**then.product, **now.product}
    changed = [name for name in files if then.product.get(name) != now.product.get(name)]
    if not changed:
        return True, ", ".join(files)
    if WHOLE in then.product and WHOLE not in changed:
        return True, (
            f"{WHOLE}, which holds every tensor; {', '.join(changed)} differs in its header alone, which "
            "other code has written"
        )
    tensors = then.facts.get("tensors_sha256")
    if tensors and tensors == now.facts.get("tensors_sha256"):
        return True, f"every tensor; {', '.join(changed)} differs in its header alone"
    hashes = [
        f"{name} has the sha256 {shown(now.product.get(name))}, had {shown(then.product.get(name))}"
        for name in changed
    ]
    return False, "; ".join(hashes)


def _weights(then: Record, now: Record, trained: Record | None, again: Record | None) -> str:
    if then.needs == now.needs:
        return "the weights it is made from are equal bit for bit"
    if trained is None or again is None:
        return "the weights it is made from are in another file than then"
    equal, said = _equal_products(trained, again)
    if equal:
        return f"the weights it is made from are equal bit for bit: {said}"
    return f"the weights it is made from came out otherwise: {said}"


def _same_outcomes(then: Record, now: Record) -> bool:
    """Whatever form they were packed in."""
    try:
        return unpack(then.outcomes).pack() == unpack(now.outcomes).pack()
    except ValueError:
        return False


def score(value: float, unit: str) -> str:
    """A result as tables show it."""
    return f"{text.percent(value, 2)} %" if unit == "share" else text.number(value)


def chance(p: float) -> str:
    """``p = 0.031``, ``p < 0.001``."""
    shown = text.probability(p)
    return f"p {shown}" if shown.startswith("<") else f"p = {shown}"


def _told(found: Gap) -> str:
    inside = ""
    if found.a_interval is not None:
        low, high = (score(end, found.unit) for end in found.a_interval)
        where = "inside" if found.b_inside else "outside of"
        inside = f", {where} the record's {stats.LEVEL:.0%} interval [{low}, {high}]"
    tells = "tells them apart" if found.told_apart else "cannot tell them apart"
    return (
        f"{found.metric} was {score(found.a, found.unit)}, is {score(found.b, found.unit)}{inside}; the "
        f"paired test on the same {found.images} images {tells} ({chance(found.p)})"
    )
