"""The leaderboard as one tidy frame, and as CSV that a spreadsheet opens without running it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from mimbench.report.tables import Cell, Column, Row, Table
from mimbench.spec import AS_RELEASED, canonical
from mimbench.weights.release import Release

# A cell that starts like this is a formula to Excel, LibreOffice and Google Sheets (OWASP, CSV Injection).
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def summary(found: Sequence[Table]) -> pd.DataFrame:
    """One row a (table, method variant, protocol), every number unrounded, with the ids of its records.

    Values are in their ``unit``: a "share" lies in [0, 1], a "number" is whatever its metric says.
    ``evaluated_on`` is the test data. Holes are NaN with a ``reason``; per-seed values read
    ``0:0.871 1:0.869`` and their records stand in the same order. ``p_above`` is the p-value against the
    method ranked just above, corrected for the number of methods in its column; ``p_above_raw`` is not.
    So many ``images_needed`` or ``seeds_needed`` would probably tell the two apart, where they tie.
    ``weights`` are "trained here" or "released", "" of floors; what is known of a released file stands in
    ``pretrain_data``, ``pretrain_epochs`` and ``weights_…``.
    Ranks and tests are within a ``group``. Of tables at equal cost ``level_share`` is the share of it that
    a row's run spent.
    """
    return pd.DataFrame(
        [
            {"table": number, **_setting(table, row), **_method(row), **_result(table, column, cell)}
            | {"pretrain_records": " ".join(row.trained.values()), **row.cost}
            for number, table in enumerate(found, start=1)
            for row in table.rows
            for column, cell in zip(table.columns, row.cells, strict=True)
        ]
    )


def _setting(table: Table, row: Row) -> dict[str, Any]:
    return {
        **{name: AS_RELEASED if value is None else value for name, value in row.setting.content().items()},
        "weights": _weights(row),
        "budget": row.setting.words()["budget"],
        "compared_at": table.level.title if table.level else "",
        "group": row.group,
    }


def _weights(row: Row) -> str:
    if row.release is not None:
        return "released"
    return "trained here" if row.recipe else ""


def _pretrain_data(row: Row) -> str:
    if row.release is not None:
        return row.release.data
    return row.setting.data if row.recipe else ""


def _method(row: Row) -> dict[str, Any]:
    release = row.release or Release()
    return {
        "role": row.role,
        "method": row.method,
        "variant": row.variant,
        "method_version": row.version,
        "older_version": row.older,
        "external": row.external,
        "learns_from": row.sources,
        "pretrain_data": _pretrain_data(row),
        "pretrain_epochs": row.epochs,
        "weights_file": release.file,
        "weights_file_sha256": release.file_sha256,
        "weights_licence": release.licence,
        "weights_layout": release.layout,
        "parity": row.parity,
        "settings": row.settings,
        "pretrain_flagged": " | ".join(row.flags),
    }


def _result(table: Table, column: Column, cell: Cell) -> dict[str, Any]:
    return {
        "protocol": column.protocol,
        "preset": column.preset,
        "protocol_version": column.version,
        "older_protocol_version": column.older,
        "protocol_fields": column.fields,
        "evaluated_on": column.data if column.tested_on else table.setting.data,
        "evaluated_fingerprint": column.tested_on or table.setting.fingerprint,
        "chosen_on": column.chosen_on,
        "metric": column.metric,
        "unit": column.unit,
        "state": cell.state,
        "reason": cell.reason,
        "rank": cell.rank,
        "value": cell.value,
        "low": cell.low,
        "high": cell.high,
        "spread": cell.spread,
        "n_seeds": len(cell.seeds),
        "n_images": cell.images,
        "p_above": cell.p_above,
        "p_above_raw": cell.p_above_raw,
        "images_needed": cell.images_needed,
        "seeds_needed": cell.seeds_needed,
        "candidates": cell.candidates,
        "chosen": " | ".join(f"{seed}: {what}" for seed, what in cell.chosen.items()),
        "at_edge_of_grid": " | ".join(cell.edges),
        "flagged": " | ".join(cell.flags),
        "metrics": canonical(cell.metrics),
        "per_seed": " ".join(f"{seed}:{value!r}" for seed, (value, _) in cell.seeds.items()),
        "records": " ".join(record for _, record in cell.seeds.values()),
    }


def csv_text(frame: pd.DataFrame) -> str:
    """CSV with all digits of every number; texts that a spreadsheet would run get a leading apostrophe.

    Starts with a byte-order mark, without which Excel reads UTF-8 as the local code page.
    """
    return "\ufeff" + frame.map(_inert).to_csv(index=False, lineterminator="\r\n")


def _inert(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
