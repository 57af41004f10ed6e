"""Features of raw card transactions that use only what was known at the moment of each transaction.

A transaction knows every earlier transaction at once, but their labels only after a delay: an investigation takes days.
Among them are the 15 inputs of the Fraud Detection Handbook (https://fraud-detection-handbook.github.io, chapter 3).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Array = npt.NDArray[np.generic]

COLUMNS = ("time_seconds", "customer", "terminal", "amount", "label")
DAY = 86_400  # seconds
NIGHT_ENDS_HOUR = 6  # the Handbook's night: hour <= 6
WEEKEND_STARTS = 5  # Monday is 0
EPOCH_WEEKDAY = 3  # 1970-01-01 was a Thursday
LARGE_RATIO = 3.0  # an amount more than this many times the customer's usual one is large
# Sums are differences of one running sum over all rows; as integers they are exact, so that no row can change another
# entity's features by rounding. An overflow of the running sum cancels in the difference.
FIXED_POINT = 10_000


def transaction_features(
    columns: Mapping[str, Array], *, label_delay_days: int = 7, windows_days: Sequence[int] = (1, 7, 30)
) -> dict[str, npt.NDArray[np.float32]]:
    """Features of every transaction, in the rows' order; NaN where a value does not exist (no earlier transaction).

    Columns: time_seconds (since 1970, ascending; equal times count in row order), customer and terminal (ids of any
    sortable type), amount (finite) and label (0 or 1, read only by rows at least label_delay_days later).
    Raises ValueError for columns that are missing or not so.
    """
    check(columns, label_delay_days, windows_days)
    delay, windows = label_delay_days * DAY, {days: days * DAY for days in sorted(windows_days)}
    reach = delay + max(windows.values())
    times = columns["time_seconds"].astype(np.int64)
    amounts, labels = columns["amount"].astype(np.float64), columns["label"].astype(np.int64)
    features = {"amount": amounts, **calendar_features(times)}

    by_customer = Timeline.of(columns["customer"], times, reach)
    known = customer_features(by_customer, amounts[by_customer.order], labels[by_customer.order], delay, windows)
    features |= {name: by_customer.in_row_order(values) for name, values in known.items()}

    by_terminal = Timeline.of(columns["terminal"], times, reach)
    is_large = features["amount_to_usual"][by_terminal.order] > LARGE_RATIO
    known = terminal_features(by_terminal, is_large, labels[by_terminal.order], delay, windows)
    features |= {name: by_terminal.in_row_order(values) for name, values in known.items()}
    return {name: values.astype(np.float32) for name, values in features.items()}


def check(columns: Mapping[str, Array], label_delay_days: int, windows_days: Sequence[int]) -> None:
    """Refuse inputs that would silently give wrong features. Raises ValueError."""
    missing = [name for name in COLUMNS if name not in columns]
    if missing:
        raise ValueError(f"columns must hold {', '.join(COLUMNS)}; add {', '.join(missing)}")
    is_earlier = np.diff(columns["time_seconds"]) < 0
    if is_earlier.any():
        raise ValueError(f"time_seconds must ascend, but row {int(is_earlier.argmax()) + 1} is earlier: sort by time")
    if not np.all(np.isfinite(columns["amount"])):
        raise ValueError("amount must be finite in every row: drop or fill the rows where it is missing")
    if not np.all(np.isin(columns["label"], (0, 1))):
        raise ValueError("label must be 0 or 1 in every row: give transactions not yet investigated a 0")
    if label_delay_days < 0:
        raise ValueError(f"label_delay_days must be 0 or more, got {label_delay_days}")
    if not windows_days or min(windows_days) <= 0:
        raise ValueError(f"windows_days must be one or more positive numbers of days, got {list(windows_days)}")


@dataclass(frozen=True)
class Window:
    """A range of a timeline for each row: from position start up to but not including stop."""

    start: Ints
    stop: Ints

    @property
    def count(self) -> Floats:
        """Transactions in each row's window."""
        return (self.stop - self.start).astype(np.float64)

    def sum(self, values: Array) -> Floats:
        """Sum of values (in timeline order) over each row's window."""
        running = np.zeros(len(values) + 1, dtype=np.int64)
        np.cumsum(np.rint(values.astype(np.float64) * FIXED_POINT).astype(np.int64), out=running[1:])
        return (running[self.stop] - running[self.start]) / FIXED_POINT

    def mean(self, values: Array, *, empty: float) -> Floats:
        """Mean of values over each row's window; `empty` where the window is."""
        return quotient(self.sum(values), self.count, empty=empty)


@dataclass(frozen=True)
class Timeline:
    """Rows sorted by entity, then time, then their own order; positions and arrays are in this order."""

    order: Ints  # the rows' own numbers
    times: Ints  # seconds
    keys: Ints  # ascending: entities lie further apart than any window reaches
    first: Ints  # position of the first row of the row's entity
    own: Ints  # position of the row

    @classmethod
    def of(cls, entities: Array, times: Ints, reach_seconds: int) -> "Timeline":
        """Timeline of rows in order of time, whose windows reach back at most reach_seconds."""
        codes = np.unique(entities, return_inverse=True)[1].astype(np.int64)
        order = np.argsort(codes, kind="stable")
        codes, times = codes[order], times[order]
        span = int(np.ptp(times)) + reach_seconds + 1 if len(times) else 1
        return cls(order, times, codes * span + times, np.searchsorted(codes, codes), np.arange(len(codes)))

    def trailing(self, seconds: int) -> Window:
        """The last `seconds`, this transaction included."""
        return Window(self.up_to(seconds), self.own + 1)

    def before(self, seconds: int) -> Window:
        """The last `seconds` without this transaction."""
        return Window(self.up_to(seconds), self.own)

    def known(self, delay: int) -> Window:
        """All transactions that are at least `delay` seconds old: those with a known label."""
        return Window(self.first, self.up_to(delay))

    def delayed(self, delay: int, seconds: int) -> Window:
        """The `seconds` that ended `delay` seconds ago."""
        return Window(self.up_to(delay + seconds), self.up_to(delay))

    def up_to(self, seconds: int) -> Ints:
        """End of what is at least `seconds` old, never this transaction itself."""
        return np.minimum(np.searchsorted(self.keys, self.keys - seconds, side="right"), self.own)

    def days_since(self, end: Ints) -> Floats:
        """Days since the transaction before position `end`; NaN where that is another entity's."""
        then = self.times[np.maximum(end - 1, 0)]
        return np.where(end > self.first, (self.times - then) / DAY, np.nan)

    def in_row_order(self, values: Floats) -> Floats:
        """The values, back in the order of the rows."""
        result = np.empty_like(values)
        result[self.order] = values
        return result


def calendar_features(times: Ints) -> dict[str, Floats]:
    """Weekend and night, 0 or 1."""
    weekday = (times // DAY + EPOCH_WEEKDAY) % 7
    hour = times % DAY // 3600
    return {
        "weekend": (weekday >= WEEKEND_STARTS).astype(np.float64),
        "night": (hour <= NIGHT_ENDS_HOUR).astype(np.float64),
    }


def customer_features(
    timeline: Timeline, amounts: Floats, labels: Ints, delay: int, windows: Mapping[int, int]
) -> dict[str, Floats]:
    """How often and how much the customer spends, and how large this amount is beside the usual and the recent ones."""
    features = {}
    for days, seconds in windows.items():
        window = timeline.trailing(seconds)
        features[f"customer_count_{days}d"] = window.count
        features[f"customer_mean_amount_{days}d"] = window.mean(amounts, empty=0.0)
    known, longest = timeline.known(delay), max(windows)
    recent = timeline.before(windows[longest]).mean(amounts, empty=np.nan)
    # Known frauds are left out of the usual amount, or a stolen card's would soon look usual.
    usual = quotient(known.sum(amounts * (1 - labels)), known.sum(1 - labels), empty=np.nan)
    ratio = quotient(amounts, np.where(np.isnan(usual), recent, usual), empty=np.nan)
    is_large = ratio > LARGE_RATIO
    features["amount_to_usual"] = ratio
    features["amount_to_recent"] = quotient(amounts, recent, empty=np.nan)
    for days, seconds in windows.items():
        features[f"customer_large_{days}d"] = timeline.before(seconds).sum(is_large)
    features["customer_days_since_large"] = timeline.days_since(end_of_last(is_large)[timeline.own])
    features["customer_days_since_last"] = timeline.days_since(timeline.own)
    features[f"customer_frauds_{longest}d"] = timeline.delayed(delay, windows[longest]).sum(labels)
    return features


def terminal_features(
    timeline: Timeline, is_large: Flags, labels: Ints, delay: int, windows: Mapping[int, int]
) -> dict[str, Floats]:
    """What is known of a terminal's frauds, above all since when those go on that no large amount explains."""
    features = {}
    for days, seconds in windows.items():
        window = timeline.delayed(delay, seconds)
        features[f"terminal_count_{days}d"] = window.count
        features[f"terminal_risk_{days}d"] = window.mean(labels, empty=0.0)
    # A fraud of a large amount tells of a stolen card, an ordinary one of the terminal.
    is_ordinary, longest = (labels == 1) & ~is_large, max(windows)
    known = timeline.known(delay).stop
    last_legitimate, last_fraud = end_of_last(labels == 0)[known], end_of_last(is_ordinary)[known]
    run_start = next_one(is_ordinary)[np.maximum(last_legitimate, timeline.first)]
    is_on = run_start < known
    run = Window(np.minimum(run_start, known), known)
    features["terminal_fraud_run"] = run.sum(is_ordinary)
    features["terminal_fraud_run_days"] = np.where(is_on, timeline.days_since(run.start + 1), np.nan)
    features["terminal_days_since_fraud"] = timeline.days_since(last_fraud)
    features["terminal_days_since_legitimate"] = timeline.days_since(last_legitimate)
    features[f"terminal_ordinary_frauds_{longest}d"] = timeline.delayed(delay, windows[longest]).sum(is_ordinary)
    return features


def end_of_last(flags: Flags) -> Ints:
    """For each position p, 0 to len(flags): one past the last flagged position before p, or 0."""
    marks = np.where(flags, np.arange(1, len(flags) + 1), 0)
    return np.concatenate(([0], np.maximum.accumulate(marks)))


def next_one(flags: Flags) -> Ints:
    """For each position p, 0 to len(flags): the first flagged position from p on, or len(flags)."""
    marks = np.where(flags, np.arange(len(flags)), len(flags))
    return np.concatenate((np.minimum.accumulate(marks[::-1])[::-1], [len(flags)]))


def quotient(numerator: Floats, denominator: Floats, *, empty: float) -> Floats:
    """Numerator / denominator; `empty` where the denominator is 0."""
    is_zero = denominator == 0
    return np.where(is_zero, empty, numerator / np.where(is_zero, 1.0, denominator))
