"""The survey's questions as experiments, shipped as files that ``mimbench run`` takes. Imports no torch.

One YAML file a question, with the options of ``mimbench run`` as keys and an ``about`` (see
``request.About``) that the page shows beside the answer. Adding one is adding a file here.
"""

from __future__ import annotations

from pathlib import Path

from mimbench.errors import UserError, unknown
from mimbench.request import About, Request, make_request, read_file

FOLDER = Path(__file__).parent


def names() -> tuple[str, ...]:
    """Of the shipped experiments, in alphabetical order."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def find(given: str | Path) -> Path:
    """The experiment file that is meant: a path that exists, or the name of a shipped one.

    What looks like a path is taken for one, so that its absence is told as a file's. Raises UnknownNameError
    for any other name.
    """
    path = Path(given)
    if path.is_file() or path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        return path
    return shipped(str(given), "experiment file here, nor a shipped one,")


def shipped(name: str, kind: str = "shipped experiment") -> Path:
    """The file of a shipped experiment; raises UnknownNameError, listing all, for any other name."""
    if name not in names():
        raise unknown(kind, name, names(), f"shipped are {', '.join(names())}")
    return FOLDER / f"{name}.yaml"


def read(name: str) -> tuple[Request, About]:
    """A shipped experiment, and what it asks."""
    path = shipped(name)
    request = make_request(read_file(path))
    if request.about is None:
        raise UserError(f"{path} does not say what it asks; give it an about with title and question")
    return request, request.about
