"""Pictures with boxes in a table of one's own: a column of images, and one of objects as JSON."""

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from datamodules.coco import is_number
from datamodules.columns import is_text
from datamodules.detection.given import Given
from datamodules.detection.objects import Objects
from datamodules.schema import require_columns
from datamodules.texts import naming
from datamodules.vision.files import of_column

RULE = 'a list such as [{"label": "cat", "box": [left, top, right, bottom]}], in pixels'


def of_table(uri: str, table: pa.Table, raw: Mapping[str, Any], notes: list[str]) -> Given:
    """The pictures and objects of a table. Raises ValueError naming the row of what is broken."""
    with naming(uri):
        require_columns(table.schema, [raw["image"], raw["objects"]])
        if not len(table):
            raise ValueError("there are no rows")
    rows = range(1, len(table) + 1)
    source = of_column(uri, table, raw, notes, rows)
    column = table[raw["objects"]]
    values = column.cast(pa.large_string()).to_pylist() if is_text(column.type) else column.to_pylist()
    where = f"column {raw['objects']!r}"
    return Given(
        source, [_objects(value, f"{uri}, row {row}, {where}") for row, value in zip(rows, values, strict=True)]
    )


def _objects(value: Any, where: str) -> Objects:
    try:
        found = json.loads(value) if isinstance(value, str) and value.strip() else value or []
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: it must be JSON, {RULE}: {error}; it is {value[:80]!r}") from None
    if not isinstance(found, list):
        raise ValueError(f"{where}: it must be {RULE}, got {str(value)[:80]!r}")
    for one in found:
        box = one.get("box") if isinstance(one, dict) else None
        is_box = isinstance(box, list) and len(box) == 4
        if not is_box or not all(map(is_number, box or [])):
            raise ValueError(f"{where}: an object must be one of {RULE}, got {str(one)[:80]!r}")
        if one.get("label") is None:
            raise ValueError(f"{where}: an object must have a label, got {str(one)[:80]!r}")
    return Objects.of([one["box"] for one in found], [str(one["label"]) for one in found])
