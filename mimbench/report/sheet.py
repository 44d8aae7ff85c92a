"""The leaderboard as CSV that a spreadsheet opens without running it."""

from __future__ import annotations

from typing import Any

import pandas as pd

# A cell that starts like this is a formula to Excel, LibreOffice and Google Sheets (OWASP, CSV Injection).
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def csv_text(frame: pd.DataFrame) -> str:
    """CSV with all digits of every number; texts that a spreadsheet would run get a leading apostrophe.

    Starts with a byte-order mark, without which Excel reads UTF-8 as the local code page.
    """
    return "\ufeff" + frame.map(_inert).to_csv(index=False, lineterminator="\r\n")


def _inert(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
