"""One careful request over http(s), and what went wrong with it in words. Imports no torch."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator, Mapping
from html import unescape
from http.client import IncompleteRead
from urllib.parse import urljoin, urlsplit

import requests
from requests.structures import CaseInsensitiveDict

CONNECTING = 10.0  # seconds until a server has taken a connection
SILENT = 30.0  # seconds without a byte
REDIRECTS = 10
LONGEST_TITLE = 100  # letters of a page's title in a message


class Session(requests.Session):
    """A session that follows redirects itself: each is checked, and the body of none is read.

    Proxies, certificates and ``.netrc`` are those of the environment, as ``requests`` has it.
    """

    def __init__(self, headers: Mapping[str, str]):
        super().__init__()
        # What is counted and resumed are the bytes of the file, not of a packed form of it.
        self.headers.update({"Accept-Encoding": "identity", **headers})

    def get_redirect_target(self, resp: requests.Response) -> None:
        """``requests`` would read a redirect's body whole, however long, before it goes on."""
        return None

    def follow(self, url: str, headers: Mapping[str, str]) -> requests.Response:
        """The answer at the end of all redirects, its body not read yet.

        Raises requests.RequestException: among them TooManyRedirects, and InvalidSchema for a redirect to
        what is no http(s) or from https to http. ``Authorization`` stays with the host it is for.
        """
        sent = CaseInsensitiveDict(headers)
        try:
            for _ in range(REDIRECTS + 1):
                response = self.get(
                    url, headers=sent, stream=True, timeout=(CONNECTING, SILENT), allow_redirects=False
                )
                target = super().get_redirect_target(response)
                if target is None:
                    return response
                response.close()
                onward = urljoin(url, target)
                _check_redirect(url, onward)
                if self.should_strip_auth(url, onward):
                    sent.pop("Authorization", None)
                url = onward
        except requests.RequestException:
            raise
        except ValueError as error:  # an address that cannot be taken apart
            raise requests.exceptions.InvalidURL(f"{url[:200]!r} is no address ({error})") from None
        raise requests.TooManyRedirects(f"it redirects more than {REDIRECTS} times")


def _check_redirect(url: str, onward: str) -> None:
    before, after = urlsplit(url).scheme.lower(), urlsplit(onward).scheme.lower()
    if after not in ("http", "https"):
        raise requests.exceptions.InvalidSchema(f"it redirects to {onward[:200]!r}, which is no web address")
    if (before, after) == ("https", "http"):
        raise requests.exceptions.InvalidSchema(f"it redirects to {onward[:200]!r}, which is not encrypted")


def reason_of(error: requests.RequestException) -> str:
    """What went wrong as a clause: the innermost cause, without the layers that handed it on."""
    causes = list(_causes(error))
    if isinstance(error, requests.ConnectTimeout):
        return f"no connection within {CONNECTING:g} seconds"
    if any(isinstance(cause, TimeoutError) for cause in causes):
        return f"no answer for {SILENT:g} seconds"
    for cause in reversed(causes):
        if isinstance(cause, ssl.SSLError):
            return f"the connection is not safe ({cause.reason or cause})"
        if isinstance(cause, IncompleteRead):
            return "the connection ended"
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
    return str(causes[-1]).strip() or type(causes[-1]).__name__


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def title_of(page: str) -> str:
    """The title of a page as ``" ('Quota exceeded')"``; "" where it has none."""
    match = re.search(r"<title[^>]*>(.*?)</title", page, re.IGNORECASE | re.DOTALL)
    words = " ".join(unescape(match[1]).split()) if match else ""
    shown = "".join(letter for letter in words if letter.isprintable())[:LONGEST_TITLE]
    return f" ({shown!r})" if shown else ""
