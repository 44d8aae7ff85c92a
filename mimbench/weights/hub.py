"""Files of the Hugging Face hub, through its own client: its cache, its tokens, its offline mode."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimbench.errors import UserError

WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # what repositories of timm and transformers call them
WRITTEN = re.compile(r"(?P<repo>[^/@:\s]+/[^/@:\s]+)(?:@(?P<revision>[^:\s]+))?(?::(?P<file>\S+))?")


class AbsentError(UserError):
    """The file is not at hand, and cannot be asked for."""


class NotThereError(AbsentError):
    """The repository is there and the file is not."""


@dataclass(frozen=True)
class Place:
    """A repository of the hub. file: in it, "" where the user names none."""

    repo: str
    revision: str = "main"
    file: str = ""

    def __str__(self) -> str:
        return f"hf:{self.repo}" + (f"@{self.revision}" if self.revision != "main" else "")


@dataclass(frozen=True)
class HubFile:
    """A file in the hub's cache. commit: that it is of."""

    path: Path
    commit: str


def parse(text: str) -> Place:
    """``OWNER/REPO[@REVISION][:FILE]``. Raises UserError for anything else."""
    match = WRITTEN.fullmatch(text)
    if match is None:
        raise UserError(f"hf:{text} names no repository of the hub; write hf:OWNER/REPO[@REVISION][:FILE]")
    return Place(match["repo"], match["revision"] or "main", match["file"] or "")


def fetch(place: Place, name: str) -> HubFile:
    """The file ``name`` of a repository, out of the hub's cache or fetched into it.

    Raises NotThereError where the repository has no such file, AbsentError where it is not in the cache and
    there is no way to the hub, and UserError where it cannot be had for another reason.
    """
    from huggingface_hub import _CACHED_NO_EXIST, constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        path = Path(hf_hub_download(place.repo, name, revision=place.revision))
    except LocalEntryNotFoundError as error:
        if try_to_load_from_cache(place.repo, name, revision=place.revision) is _CACHED_NO_EXIST:
            raise _not_there(place, name) from error
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
        raise AbsentError(
            f"{place}: {name} is not in the hub's cache and {why}; fetch it where there is a network (hf "
            f"download {place.repo} {name}), or give a file as file:PATH"
        ) from error
    except EntryNotFoundError as error:
        raise _not_there(place, name) from error
    except GatedRepoError as error:
        raise UserError(
            f"{place} is only for those who have agreed to its terms; do so on its page and log in with hf "
            "auth login"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{place.repo} has no revision {place.revision}; check it") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(
            f"the hub has no repository {place.repo}, or none that you may read; check its name, or log in "
            "with hf auth login"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"cannot fetch {name} of {place}: {reason}; try again") from error
    return HubFile(path, _commit(path))


def _not_there(place: Place, name: str) -> NotThereError:
    return NotThereError(f"{place} has no file {name}; name one as hf:{place.repo}:FILE")


def _commit(path: Path) -> str:
    """The commit in the path of a file in the hub's cache, …/snapshots/COMMIT/NAME."""
    parts = path.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else ""


def fetch_json(place: Place, name: str) -> dict[str, Any]:
    """A JSON file of a repository; errors as of ``fetch``."""
    path = fetch(place, name).path
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{name} of {place} is not valid JSON ({error}); name another repository") from error
    if not isinstance(content, dict):
        raise UserError(f"{name} of {place} holds no settings; name another repository")
    return content


def fetch_first(place: Place, names: tuple[str, ...]) -> HubFile:
    """The first of several files that a repository has; errors as of ``fetch``."""
    absent: AbsentError | None = None
    for name in names:
        try:
            return fetch(place, name)
        except AbsentError as error:
            if absent is None or not isinstance(error, NotThereError):
                absent = error
    assert absent is not None
    raise absent
