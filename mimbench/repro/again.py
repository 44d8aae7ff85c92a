"""From a record to the request that makes it anew: nobody has to remember what was typed.

``request_of`` reads everything off the record's content. What today's code makes of that request is a plan;
a job of the same id in it means that the same is asked today as then, any other that it is not.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimbench import registry, settings
from mimbench.errors import UserError
from mimbench.spec import Job, Record, Setting
from mimbench.weights.entries import entries

if TYPE_CHECKING:
    from mimbench.data import Dataset
    from mimbench.plan import Plan

GIVEN = re.compile(r"sha256:([0-9a-f]{8})")  # how a label names a weights file that was given


def options_of(
    record: Record, data: Sequence[str], files: Mapping[str, Path] | None = None
) -> dict[str, Any]:
    """The options of ``mimbench run`` that make a record anew, in the form of an experiment file.

    data: specs, that of the pre-training first. files: weights that were given to the training, by sha256.
    Raises UserError for a method, protocol or weights file that is not at hand.
    """
    content = record.content
    setting = Setting.model_validate(content["setting"])
    options: dict[str, Any] = {
        "methods": [_row(record, files or {})],
        "protocol": ["none"],
        "data": list(data),
        "image_size": setting.image_size,
        **_training(setting),
        "precision": setting.precision,
        "seeds": [content["seed"]],
        "baselines": False,
    }
    if record.kind == "evaluate":
        name, fields = _protocol(content)
        options["protocol"] = [name]
        options |= {"set": {f"{name}.{field}": value for field, value in fields.items()}} if fields else {}
    if record.data.get("skipped"):
        options["skip_broken"] = True
    return options


def _training(setting: Setting) -> dict[str, Any]:
    """The options of what is trained here; none for released weights."""
    if setting.budget is None:
        return {}
    return {
        "backbone": setting.backbone,
        setting.budget.unit: setting.budget.amount,
        "recipe": setting.recipe,
        "batch_size": setting.batch_size,
    }


def _row(record: Record, files: Mapping[str, Path]) -> str:
    """The item of ``--methods`` that brings the record's method along."""
    label = str(record.content.get("variant") or record.content["method"])
    if "released" in record.content:
        return _released(record, label, files)
    if record.content["setting"]["budget"] is None:  # raw pixels beside released weights
        like = f"like={record.content['setting']['backbone']}"
        return f"{label[:-1]},{like}]" if label.endswith("]") else f"{label}[{like}]"
    if record.kind == "tokenizer":
        label = _host(record.content["method"], label)

    def path(match: re.Match[str]) -> str:
        for sha256, file in files.items():
            if sha256.startswith(match[1]):
                return f"file:{file}"
        raise UserError(
            f"{record.name} was made with a weights file of its own (sha256 {match[1]}…); "
            "give that file with --given PATH"
        )

    return GIVEN.sub(path, label)


def _released(record: Record, label: str, files: Mapping[str, Path]) -> str:
    """The item that names released weights: the catalogue's by name, others by a file that was given."""
    released = record.content["released"]
    name = label.removeprefix("random[like=").removesuffix("]") if released["untrained"] else label
    file = next((path for path in files.values() if _holds(path, released["file_sha256"])), None)
    of = record.facts.get("release", {}).get("name", "") or name
    if file is None and not of.startswith(("timm:", "hf:")) and of not in entries():
        raise UserError(
            f"{record.name} was made of a weights file of its own (sha256 {released['file_sha256'][:8]}…); "
            "give that file, or what it was converted to, with --given PATH"
        )
    source = f"file:{file}" if file else of
    source = source if source == name else f"{name}={source}"
    return f"random[like={source}]" if released["untrained"] else source


def _holds(path: Path, file_sha256: str) -> bool:
    """Whether a file of ours is, or was converted from, the one of that content."""
    from mimbench import checkpoint
    from mimbench.weights.given import release_of

    metadata = checkpoint.read_metadata(path)
    return "backbone_config" in metadata and release_of(path, metadata)["file_sha256"] == file_sha256


def _host(key: str, label: str) -> str:
    """A row that has the tokenizer ``label`` trained for it: a tokenizer is no row of its own."""
    for name, cls in registry.methods().items():
        for keyword in cls.needs:
            if keyword.endswith("tokenizer") and cls.card.role != "tokenizer":
                given = settings.parse_methods(label)[0].given
                inside = {k if "." in k else f"{key}.{k}": v for k, v in given.items()}
                parts = [f"{keyword}=method:{key}", *(f"{k}={settings.show(v)}" for k, v in inside.items())]
                return f"{name}[{','.join(parts)}]"
    raise UserError(f"no method here learns from a tokenizer, so that {key} cannot be trained")


def _protocol(content: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The protocol as ``--protocol`` takes it, and those fields that are not what that name means."""
    key, preset = content["protocol"], str(content.get("preset", "")).partition("[")[0]
    cls = registry.find_protocol(key)
    usual = settings.defaults(cls)
    if preset and preset in cls.presets:
        usual = settings.parse_settings(key, cls, dict(cls.presets[preset].fields))
    changed = {k: v for k, v in content.get("fields", {}).items() if k in usual and usual[k] != v}
    return (f"{key}:{preset}" if preset else key), changed


def command_line(options: Mapping[str, Any], out: str = "") -> str:
    """``mimbench run …`` for options of an experiment file, quoted for a POSIX shell."""
    words = ["mimbench", "run"]
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if name in ("about", "out"):
            continue
        if name == "set":
            pairs = [(k, v) for k, v in _assignments(value)]
            words += [f"--set={k}={settings.show(v)}" for k, v in pairs]
        elif isinstance(value, bool):
            words.append(flag if value else f"--no-{name.replace('_', '-')}")
        elif isinstance(value, (list, tuple)):
            joined = ",".join(v if isinstance(v, str) else settings.show(v) for v in value)
            words.append(f"{flag}={joined or 'none'}")
        else:
            words.append(f"{flag}={settings.show(value)}")
    if out:
        words.append(f"--out={out}")
    return shlex.join(words)


def _assignments(value: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, Mapping) and "." not in name:
            yield from ((f"{name}.{k}", v) for k, v in inner.items())
        else:
            yield name, inner


@dataclass(frozen=True)
class Again:
    """What today's code makes of a record.

    job: the one that answers for it now. changed: sentences on what of its content means something else
    today; none where the ids are equal.
    """

    plan: Plan
    job: Job
    changed: tuple[str, ...] = ()

    @property
    def chain(self) -> Plan:
        """The job and all it needs, and no more."""
        from mimbench.plan import Plan

        jobs = {job.id: job for job in self.plan}
        wanted, left = {self.job.id}, [self.job]
        while left:
            left = [jobs[need] for job in left for need in job.needs if need not in wanted]
            wanted |= {job.id for job in left}
        chosen = tuple(job for job in self.plan if job.id in wanted)
        return Plan(self.plan.settings, chosen, self.plan.files)


def plan_again(record: Record, datasets: Sequence[Dataset], files: Mapping[str, Path]) -> Again:
    """The plan that today's code makes for a record.

    datasets: the pre-training's first; behind it the one that was evaluated on, where that is another.
    Raises UserError where today's code knows a method, protocol or setting of the record no more.
    """
    from mimbench.plan import make_plan
    from mimbench.request import make_request

    given = options_of(record, [data.spec for data in datasets], files)
    try:
        plan = make_plan(make_request(given), datasets, given["precision"])
    except UserError as error:
        by_hand = "; or give its weights with --given PATH" if "released" in record.content else ""
        raise UserError(f"{record.name} cannot be asked for today: {error}{by_hand}") from error
    for job in plan:
        if job.id == record.id:
            return Again(plan, job)
    job = _counterpart(record, plan)
    return Again(plan, job, tuple(_changed(record, job)) or ("what it needs to be trained first",))


def _counterpart(record: Record, plan: Plan) -> Job:
    """The job of a plan that asks most nearly what a record answers."""
    fitting = [job for job in plan if job.kind == record.kind]
    same = [job for job in fitting if job.content["method"] == record.content["method"]]
    tested = record.content.get("data", {}).get("fingerprint")
    on_it = [job for job in same if job.content.get("data", {}).get("fingerprint") == tested]
    return (on_it or same or fitting)[-1]


def _changed(record: Record, job: Job) -> Iterator[str]:
    """What the content of a job says otherwise than a record's, one sentence each."""
    then, now = dict(_leaves(record.content)), dict(_leaves(job.content))
    for name in dict.fromkeys([*then, *now]):
        if name in ("setting.data", "data.name") or then.get(name) == now.get(name):
            continue
        if name not in then:
            yield f"{name} is {settings.show(now[name])} today, and did not exist then"
        elif name not in now:
            yield f"{name} was {settings.show(then[name])}, and does not exist today"
        else:
            yield f"{name} was {settings.show(then[name])}, and is {settings.show(now[name])} today"


def _leaves(content: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(content, Mapping) and content:
        # what decides most comes first: versions before all that they brought along
        for key in sorted(content, key=lambda key: (not key.endswith("version"), list(content).index(key))):
            yield from _leaves(content[key], f"{name}.{key}" if name else key)
    elif name:
        yield name, content
