"""What a section of the page may use beside its tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup


@dataclass(frozen=True)
class Surroundings:
    """environment: of the templates. folders: of the results. link: a record's address by its id.

    address: of a file, as the page links to it.
    """

    environment: Environment
    folders: Sequence[Path]
    link: Callable[[str], str]
    address: Callable[[Path], str]

    def render(self, template: str, **facts: Any) -> Markup:
        """A template of ``report/templates`` with ``facts``, escaped."""
        return Markup(self.environment.get_template(template).render(**facts))
