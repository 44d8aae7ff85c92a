"""Files at hand as encoders of ours: a released one fetched by hand, or one that its user trained."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from mimbench.errors import UserError
from mimbench.files import locked, make_folder, sha256
from mimbench.registry import build_backbone, find_origin
from mimbench.weights.convert import convert
from mimbench.weights.entries import converted_path, entries
from mimbench.weights.entry import Entry
from mimbench.weights.obtain import layouts

TITLE = re.compile(r"[a-z0-9][a-z0-9_.\-]*")
KEY = re.compile(r"[a-z][a-z0-9_]*")


def take(source: Path, entry: Entry, out: Path | None = None) -> Path:
    """Convert ``source``, the released file of ``entry`` fetched by hand; the path of the encoder.

    out: a file or folder; by default the place in the cache where ``mimbench run`` looks for the entry.
    Raises UserError where it is not the file that the catalogue knows, or of another layout.
    """
    _check_source(source)
    known = known_sums(entry)
    if known and (digest := sha256(source)) not in known:
        raise UserError(
            f"{source} is not the released {entry.name}: its sha256 is {digest}, expected "
            f"{' or '.join(sorted(known))}; give weights of your own a name with --own TITLE"
        )
    if out is not None:
        target = _target(out, f"{entry.name}.safetensors")
        _convert(source, entry, target)
        return target
    target = converted_path(entry)
    with locked(target.with_suffix(".lock"), lambda: None):
        _convert(source, entry, target)
    return target


def take_own(
    source: Path,
    like: Entry,
    title: str,
    *,
    method: str = "",
    backbone: str = "",
    image_size: int | None = None,
    options: Mapping[str, Any] = {},
    out: Path | None = None,
) -> Path:
    """Convert ``source``, which its user trained with code that writes files like ``like``'s.

    It is called METHOD@TITLE, says nothing of ``like``'s data, epochs or licence, and takes no place in the
    cache. method, backbone: others than ``like``'s. image_size: in pixels, that it was trained on. options:
    of the backbone, where they are not ``like``'s. out: a file or folder; TITLE.safetensors here by default.
    Raises UserError for a title that is none or is a released file's, and for a file of another layout.
    """
    _check_source(source)
    key = method or like.method
    if not KEY.fullmatch(key):
        raise UserError(f"{key!r} is no key of a method; use lower-case letters, digits and _")
    if not TITLE.fullmatch(title):
        raise UserError(
            f"{title!r} cannot be a title; use lower-case letters, digits and . _ -, as in my-run"
        )
    if (name := f"{key}@{title}") in entries():
        raise UserError(f"{name} is a released file; give your own weights another title than {title!r}")
    unsaid = ("data", "learned_from", "licence", "page", "source", "notes")
    paper = () if key == like.method else ("title", "paper", "arxiv", "code")
    entry = like.model_copy(
        update={
            **dict.fromkeys((*unsaid, *paper), ""),
            **{"name": name, "epochs": None, "mirrors": (), "figures": {}},
            "backbone": backbone or like.backbone,
            "image_size": image_size or like.image_size,
            "options": {**like.options, **options},
        }
    )
    _check_options(entry, options)
    target = _target(out or Path(), f"{title}.safetensors")
    convert(source, entry, target)
    return target


def _check_options(entry: Entry, options: Mapping[str, Any]) -> None:
    try:
        with torch.device("meta"):
            build_backbone(**find_origin(entry.origin).config(entry))
    except TypeError as error:
        given = ", ".join(options) or "the options of the entry"
        raise UserError(
            f"{entry.backbone} cannot be built with {given} ({error}); "
            "mimbench weights show NAME lists the options of an entry"
        ) from error


def known_sums(entry: Entry) -> set[str]:
    """The sha256 of its released files; empty unless all are known."""
    sums = {mirror.sha256 for mirror in entry.mirrors}
    return set() if "" in sums else sums


def _convert(source: Path, entry: Entry, target: Path) -> None:
    """By the layout of the entry, or of one of its mirrors."""
    misfit = None  # to the entry's own layout, which is what most files are of
    for as_there, origin in layouts(entry):
        try:
            convert(source, as_there, target, origin)
            return
        except UserError as error:
            misfit = misfit or error
    assert misfit is not None
    raise misfit


def _check_source(source: Path) -> None:
    if not source.is_file():
        raise UserError(f"no weights file at {source}; check the path")


def _target(out: Path, name: str) -> Path:
    path = out / name if out.is_dir() else out
    if path.suffix != ".safetensors":
        raise UserError(f"{path} would be a safetensors file; name it {path.name or 'NAME'}.safetensors")
    make_folder(path.parent)
    return path


def parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """["cls_token=false", "depth=12"] -> {"cls_token": False, "depth": 12}. Raises UserError for others."""
    options = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name.isidentifier() and equals):
            raise UserError(f"--set {text}: write an option of the backbone as OPTION=VALUE, as in depth=12")
        try:
            options[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"--set {text}: {value!r} is no value; write a number, a word or true") from error
    return options
