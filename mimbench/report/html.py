"""Self-contained pages: one file without a network, in which no name can inject anything.

Everything variable goes through Jinja2's autoescape. A content security policy allows the page's own style
and script by their hashes and nothing else, not even a style attribute.
"""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

HERE = "mimbench.report"


def environment(package: str = HERE, *, autoescape: bool = True) -> Environment:
    """Templates of a package, which may extend those of this one."""
    return Environment(
        loader=ChoiceLoader([PackageLoader(name) for name in dict.fromkeys((package, HERE))]),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def sealed(templates: Environment, name: str, *, style: str, script: str = "", **facts: Any) -> str:
    """A page that extends ``frame.html``, with its style, its script and the policy that allows just them."""
    page = templates.get_template(name).render(
        style=Markup(style),
        script=Markup(script),
        style_hash=_source_hash(style),
        script_hash=_source_hash(script),
        **facts,
    )
    # A third of all nodes would be line ends between tags. In names and values ">" is "&gt;".
    return re.sub(r">\n+<", "><", page)


def _source_hash(content: str) -> str:
    """What a content security policy knows an inline element by (CSP Level 3, 2.3.1)."""
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
