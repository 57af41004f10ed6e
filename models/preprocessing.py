"""Raw table columns to network inputs, by buffers built from the schema: the same in training and in the export."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

# Shapes: B rows, F numeric columns, C categorical columns, T timestamp columns, D encoded features.

MISSING_TIME = -(2**63)  # how a missing timestamp travels
DAY, HOUR = 86_400, 3_600  # seconds
EPOCH_WEEKDAY = 3  # 1970-01-01 was a Thursday; Monday is 0
NIGHT_ENDS_HOUR = 6  # hours 0 to 6 are night
SCALED_LIMIT = 16.0  # of the scaled values, reached by nothing real: keeps an infinity out of the network


class NumericEncoding(nn.Module):
    """Numeric columns [B, F] (NaN = missing) to features [B, D]: a robustly scaled value, a missing indicator and bins.

    The bins are piecewise-linear (https://arxiv.org/abs/2203.05556): each is 0 below its left edge, 1 above its right
    edge and linear between. Missing values take the median. `column` holds the column of each feature.
    """

    median: Tensor
    iqr: Tensor
    column: Tensor
    with_missing: Tensor
    bin_column: Tensor
    bin_left: Tensor
    bin_per_width: Tensor

    def __init__(self, columns: list[Mapping[str, Any]]) -> None:
        super().__init__()
        bins = [
            (index, left, right)
            for index, column in enumerate(columns)
            for left, right in zip(column["bins"], column["bins"][1:], strict=False)
        ]
        with_missing = [index for index, column in enumerate(columns) if column["missing"] > 0]
        left = torch.tensor([left for _, left, _ in bins])
        widths = torch.tensor([right for _, _, right in bins]) - left
        buffers = {
            "median": torch.tensor([float(column["median"]) for column in columns]),
            "iqr": torch.tensor([float(column["iqr"]) for column in columns]),
            "with_missing": torch.tensor(with_missing, dtype=torch.int64),
            "bin_column": torch.tensor([index for index, _, _ in bins], dtype=torch.int64),
            "bin_left": left,
            "bin_per_width": 1.0 / widths.clamp(min=torch.finfo(torch.float32).tiny),
        }
        for name, value in buffers.items():
            self.register_buffer(name, value)
        order = [torch.arange(len(columns)), buffers["with_missing"], buffers["bin_column"]]
        self.register_buffer("column", torch.cat(order), persistent=False)

    def forward(self, numeric: Tensor) -> Tensor:
        """Encode [B, F] as [B, D]."""
        if torch.compiler.is_exporting():  # ONNX Runtime works through rows at once, through columns number by number
            return self._encoded(numeric.T, columns=0).T
        return self._encoded(numeric, columns=1)

    def _encoded(self, numeric: Tensor, *, columns: int) -> Tensor:
        """Features along the dimension that the columns lie along."""
        median, iqr = self.median.unsqueeze(1 - columns), self.iqr.unsqueeze(1 - columns)
        is_missing = torch.isnan(numeric)
        filled = torch.where(is_missing, median, numeric)
        scaled = (filled - median) / iqr
        scaled = (torch.sign(scaled) * torch.log1p(scaled.abs())).clamp(-SCALED_LIMIT, SCALED_LIMIT)
        parts = [scaled]
        if len(self.with_missing):
            parts.append(is_missing.index_select(columns, self.with_missing).to(scaled.dtype))
        if len(self.bin_column):  # each bin's share that lies below the value
            left, per_width = self.bin_left.unsqueeze(1 - columns), self.bin_per_width.unsqueeze(1 - columns)
            above = filled.index_select(columns, self.bin_column) - left
            parts.append((above * per_width).clamp(0.0, 1.0))
        return torch.cat(parts, dim=columns)


class TimestampEncoding(nn.Module):
    """Seconds since 1970 [B, T] to hour of day (sine, cosine), night, weekday and a missing indicator [B, T * 11]."""

    size = 11

    def forward(self, timestamp: Tensor) -> Tensor:
        """Encode [B, T] int64 as [B, T * 11]; a missing time is all zeros but its indicator."""
        is_missing = timestamp == MISSING_TIME
        seconds = torch.where(is_missing, 0, timestamp)
        second_of_day = torch.remainder(seconds, DAY)
        second_of_week = torch.remainder(seconds + EPOCH_WEEKDAY * DAY, 7 * DAY)
        angle = second_of_day.to(torch.float32) * (2.0 * torch.pi / DAY)
        is_night = second_of_day < (NIGHT_ENDS_HOUR + 1) * HOUR
        # No division: ONNX divides whole numbers in float32, which is wrong by days.
        since = second_of_week.unsqueeze(2) - torch.arange(7, device=timestamp.device) * DAY
        is_day = (since >= 0) & (since < DAY)
        parts = [torch.stack([angle.sin(), angle.cos(), is_night.to(angle.dtype)], dim=2), is_day.to(angle.dtype)]
        known = torch.cat(parts, dim=2) * (~is_missing).unsqueeze(2)
        return torch.cat([known, is_missing.unsqueeze(2).to(angle.dtype)], dim=2).flatten(1)


class CategoryEmbedding(nn.Module):
    """Category codes [B, C] to learned vectors [B, C, size]; code 0 (unknown or missing) has its own vector."""

    offset: Tensor
    last: Tensor

    def __init__(self, columns: list[Mapping[str, Any]], *, size: int) -> None:
        super().__init__()
        counts = torch.tensor([num_codes(column) for column in columns], dtype=torch.int64)
        self.register_buffer("offset", torch.cumsum(counts, 0) - counts)
        self.register_buffer("last", counts - 1)
        self.table = nn.Embedding(int(counts.sum()), size)
        nn.init.normal_(self.table.weight, std=size**-0.5)

    def forward(self, categorical: Tensor) -> Tensor:
        """Embed [B, C] int64; a code outside the schema's range counts as unknown."""
        is_known = (categorical >= 0) & (categorical <= self.last)
        vectors: Tensor = self.table(torch.where(is_known, categorical, 0) + self.offset)
        return vectors


class StaticEncoding(nn.Module):
    """Numeric and timestamp columns to features [B, size]: nothing is learned here, so many steps can share one call.

    `owner` [size] numbers the column of each feature: the numeric columns first, then the timestamps.
    """

    owner: Tensor

    def __init__(self, schema: Mapping[str, Any]) -> None:
        super().__init__()
        numeric, _, timestamp = columns_by_kind(schema)
        self.numeric = NumericEncoding(numeric) if numeric else None
        self.timestamp = TimestampEncoding() if timestamp else None
        owners = [self.numeric.column] if self.numeric else []
        times = torch.arange(len(numeric), len(numeric) + len(timestamp))
        self.register_buffer(
            "owner", torch.cat([*owners, times.repeat_interleave(TimestampEncoding.size)]), persistent=False
        )
        self.num_columns = len(numeric) + len(timestamp)
        self.size = len(self.owner)

    def forward(self, numeric: Tensor, timestamp: Tensor) -> Tensor:
        """Encode numeric [B, F] and timestamp [B, T] as [B, size]."""
        parts = [self.numeric(numeric)] if self.numeric else []
        if self.timestamp:
            parts.append(self.timestamp(timestamp))
        if not parts:
            return numeric
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class CategoryFeatures(nn.Module):
    """Static features and embedded categories side by side, [B, size]."""

    def __init__(self, schema: Mapping[str, Any], *, num_static: int, category_size: int) -> None:
        super().__init__()
        categorical = columns_by_kind(schema)[1]
        self.embedding = CategoryEmbedding(categorical, size=category_size) if categorical else None
        self.size = num_static + len(categorical) * category_size

    def forward(self, encoded: Tensor, categorical: Tensor) -> Tensor:
        """Join encoded [B, num_static] and categorical [B, C]."""
        if self.embedding is None:
            return encoded
        return torch.cat([encoded, self.embedding(categorical).flatten(1)], dim=1)


def columns_by_kind(
    schema: Mapping[str, Any],
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Split the schema's columns into numeric (booleans among them), categorical and timestamp, each in its order.

    Raises ValueError for an unknown kind and for a schema without columns.
    """
    columns = list(schema["columns"])
    kinds = {"numeric": 0, "boolean": 0, "categorical": 1, "timestamp": 2}
    groups: tuple[list[Mapping[str, Any]], ...] = ([], [], [])
    for column in columns:
        if column["kind"] not in kinds:
            raise ValueError(f"column {column['name']}: kind must be one of {sorted(kinds)}, got {column['kind']!r}")
        groups[kinds[column["kind"]]].append(column)
    if not columns:
        raise ValueError("schema has no columns to learn from: every column was left out, see its left_out list")
    return groups[0], groups[1], groups[2]


def num_codes(column: Mapping[str, Any]) -> int:
    """Codes of a categorical column, the unknown code 0 included."""
    return 1 + (int(column["hash_buckets"]) or len(column["categories"]))
