"""The one exception that reaches a user as a sentence instead of a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what the user gave.

    The message is one sentence that names the input, says what was expected and what to do.
    The command line prints it and exits with status 2; the Python API lets it rise.
    """


class UnknownNameError(UserError, LookupError):
    """A name that nothing is registered under; the message suggests near matches."""


def unknown(kind: str, name: str, known: Iterable[str], see: str = "") -> UnknownNameError:
    """Build the error for an unknown ``name`` of a ``kind``, with near matches out of ``known``."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else f"known are {', '.join(known)}"
    return UnknownNameError(f"no {kind} is called {name!r}; {hint}" + (f" ({see})" if see else ""))
