"""Which rows a request names, and which floors and ceilings stand beside them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from mimbench import registry, settings
from mimbench.builder import Builder
from mimbench.errors import UserError
from mimbench.progress import Progress, silent
from mimbench.request import BUDGETS, Request
from mimbench.variants import Assignments, Released, Variant
from mimbench.weights.given import is_given, resolve


def choose_variants(
    request: Request, labelled: bool, assigned: Assignments, report: Callable[[Progress], None] = silent
) -> list[Variant] | list[Released | Variant]:
    """The variants a request names, floor rows before them and ceiling rows after them.

    report: hears how far weights are that have to be fetched.
    """
    wanted = settings.parse_methods(",".join(request.methods))
    if asks_for_released(request):
        return _released(request, wanted, assigned, report)
    if request.baselines:
        listed = {item.key for item in wanted if not item.given}  # a variant does not stand in for it
        for key, cls in registry.methods().items():
            role = cls.card.role
            if key in listed or (cls.card.external == "labels" and not labelled):
                continue
            if role in ("floor", "ceiling"):
                wanted.insert(0 if role == "floor" else len(wanted), settings.Wanted(key, {}))
    given = {
        name: source for name in ("tokenizer", "teacher") if (source := getattr(request, name)) is not None
    }
    builder = Builder(assigned, labelled, report)
    variants = [builder.row(item, given) for item in wanted]
    for name, source in given.items():
        if name not in builder.used:
            raise UserError(f"--{name} {source}: no method of this run has a {name}; leave it out")
    return list({variant.label: variant for variant in variants}.values())


def asks_for_released(request: Request) -> bool:
    """Whether a request is of weights that somebody else trained.

    Raises UserError where it also names methods to train: the two have no setting in common.
    """
    wanted = settings.parse_methods(",".join(request.methods))
    named = {item.key.partition("=")[0] for item in wanted if is_given(item.key)}
    given = [item.key for item in wanted if is_given(item.key) or _stands_beside(item, named)]
    trained = [item.key for item in wanted if not is_given(item.key) and _role(item) != "floor"]
    if given and trained:
        raise UserError(
            f"{given[0]} is trained already and {trained[0]} would be trained here, so that they have no "
            "setting in common and stand in no table together; run them apart (the same --out puts both on "
            "one page)"
        )
    return bool(given)


def _stands_beside(item: settings.Wanted, named: Collection[str]) -> bool:
    """Whether it is a floor of weights (of which some are ``named``) or of their backbone, no method's."""
    like = str(item.given.get("like", ""))
    return bool(like) and (is_given(like) or like in named or item.key == "pixels")


def _role(item: settings.Wanted) -> str:
    return registry.find_method(item.key).card.role


def _released(
    request: Request,
    wanted: Sequence[settings.Wanted],
    assigned: Assignments,
    report: Callable[[Progress], None],
) -> list[Released | Variant]:
    """Rows of released weights; before them raw pixels, and each of their architectures untrained."""
    for name in ("backbone", *BUDGETS, "recipe", "batch_size", "tokenizer", "teacher"):
        if getattr(request, name) != Request.model_fields[name].default:
            raise UserError(
                f"--{name.replace('_', '-')} says how to pre-train, and these weights are trained already; "
                "leave it out"
            )
    rows: list[Released] = []
    for item in wanted:
        if is_given(item.key):
            if item.given:
                raise UserError(
                    f"{item.key} is trained already and takes no settings; leave the brackets out"
                )
            rows.append(Released(resolve(item.key, report)))
    named = {row.label: row.given for row in rows}
    for item in wanted:
        if item.key == "random":
            if item.given.keys() != {"like"}:
                raise UserError(
                    "random beside released weights: say like which, and nothing else, as in "
                    "random[like=mae@vit_base]"
                )
            like = str(item.given["like"])
            rows.append(Released(named.get(like) or resolve(like, report), untrained=True))
    by_label: dict[str, Released] = {}
    for row in rows:
        if by_label.setdefault(row.label, row).given.key != row.given.key:
            raise UserError(
                f"two files are called {row.label}; give one a name of its own, as in mine=file:PATH"
            )
    if request.baselines:
        for row in list(by_label.values()):
            if not any(r.untrained and r.architecture == row.architecture for r in by_label.values()):
                floor = Released(row.given, untrained=True)
                by_label[floor.label] = floor
    floors = [row for row in by_label.values() if row.untrained]
    methods = [row for row in by_label.values() if not row.untrained]
    backbones = list(dict.fromkeys(row.backbone for row in by_label.values()))
    return [*_pixels(request, wanted, assigned, backbones), *floors, *methods]


def _pixels(
    request: Request, wanted: Sequence[settings.Wanted], assigned: Assignments, backbones: Sequence[str]
) -> list[Variant]:
    """Raw pixels beside each backbone, on whose grid they are; beside one that is named alone."""
    named = [item for item in wanted if not is_given(item.key) and item.key != "random"]
    if request.baselines and not named:
        named = [settings.Wanted("pixels", {})]
    builder, found = Builder(assigned, labelled=True), []
    for item in named:
        own = dict(item.given)
        like = own.pop("like", None)
        variant = builder.row(settings.Wanted(item.key, own), {})
        if variant.key != "pixels":
            raise UserError(f"{item.key} is no floor of released weights; leave it out")
        found += [replace(variant, backbone=name) for name in ([str(like)] if like else backbones)]
    return found
