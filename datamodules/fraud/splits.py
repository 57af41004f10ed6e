"""Which rows train, which validate and which test: by time, by date, at random or by customer."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

How = Literal["time", "random", "customer"]
Rows = NDArray[np.int64]
Intervals = Mapping[str, Sequence[str] | None]
NAMES = ("train", "val", "test")


def split_rows(
    how: How,
    *,
    labels: NDArray[np.floating[Any]],
    times: NDArray[np.int64] | None,
    customers: NDArray[np.int64] | None,
    shares: tuple[float, float],
    seed: int,
) -> dict[str, Rows]:
    """Ascending row numbers of each split; `shares` are train's and validation's, test has the rest.

    time: the oldest train, the newest test; rows of one moment stay together (without times, the rows' order counts).
    random: the same share of each label to every split. customer: all rows of a customer to one split.
    """
    train, val = shares
    if train + val >= 1:
        raise ValueError(f"train_share + val_share must be below 1 to leave test rows, got {train} + {val}")
    if how == "time":
        return _by_time(len(labels), times, (train, train + val))
    if how == "random":
        return _at_random(labels, (train, train + val), seed)
    if customers is None:
        raise ValueError("split=customer needs the column that names the customer: give data.customer=COLUMN")
    return _by_customer(customers, (train, train + val), seed)


def split_by_dates(times: NDArray[np.int64], intervals: Intervals) -> dict[str, Rows]:
    """Ascending row numbers with start <= time < end, for {split: [start, end]}; a split left out or null is empty.

    Starts and ends are ISO dates or times, or numbers where time is counted from an unknown moment.
    """
    unknown = set(intervals) - set(NAMES)
    if unknown or not intervals.get("train"):
        raise ValueError(f"splits must map train and perhaps val and test to [start, end], got {dict(intervals)}")
    bounds = {name: _bounds(name, interval) for name, interval in intervals.items() if interval}
    ordered = sorted(bounds.items(), key=lambda item: item[1])
    for (first, (_, end)), (second, (start, _)) in zip(ordered, ordered[1:], strict=False):
        if start < end:
            both = f"{first} {intervals[first]} and {second} {intervals[second]}"
            raise ValueError(f"splits must not overlap, but {both} do")
    rows = {name: np.flatnonzero((times >= start) & (times < end)) for name, (start, end) in bounds.items()}
    if not len(rows["train"]):
        raise ValueError(f"splits.train {intervals['train']} holds no rows; times are {times.min()} to {times.max()} s")
    return {name: rows.get(name, np.empty(0, np.int64)) for name in NAMES}


def _bounds(name: str, interval: Sequence[str]) -> tuple[float, float]:
    if len(interval) != 2:
        raise ValueError(f"splits.{name} must be [start, end], got {list(interval)}")
    start, end = (_moment(name, str(text)) for text in interval)
    if start >= end:
        raise ValueError(f"splits.{name} must start before it ends, got {list(interval)}")
    return start, end


def _moment(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"splits.{name} must hold ISO dates such as 2018-07-25, got {text!r}") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _by_time(num_rows: int, times: NDArray[np.int64] | None, cuts: tuple[float, float]) -> dict[str, Rows]:
    ends = [round(cut * num_rows) for cut in cuts]
    if times is not None:
        ends = [int(np.searchsorted(times, times[min(end, num_rows - 1)])) for end in ends]
    if not 0 < ends[0] <= ends[1] < num_rows:
        raise ValueError("cannot split by time: too few rows, or too many of one moment; try data.split=random")
    return dict(zip(NAMES, np.split(np.arange(num_rows), ends), strict=True))


def _at_random(labels: NDArray[np.floating[Any]], cuts: tuple[float, float], seed: int) -> dict[str, Rows]:
    generator = np.random.default_rng(seed)
    parts = []
    for label in (0, 1):
        rows = generator.permutation(np.flatnonzero(labels == label))
        parts.append(np.split(rows, [round(cut * len(rows)) for cut in cuts]))
    return {name: np.sort(np.concatenate(pair)) for name, pair in zip(NAMES, zip(*parts, strict=True), strict=True)}


def _by_customer(customers: NDArray[np.int64], cuts: tuple[float, float], seed: int) -> dict[str, Rows]:
    distinct, place = np.unique(customers, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(distinct)) / len(distinct)
    part = np.digitize(order, cuts)[place]
    return {name: np.flatnonzero(part == index) for index, name in enumerate(NAMES)}
