"""Features of raw card transactions that use only what was known at the moment of each transaction.

A transaction knows every earlier transaction at once, but the labels of others only after a delay (an investigation takes days).
The first fifteen are the inputs of the Fraud Detection Handbook (https://fraud-detection-handbook.github.io, chapter 3).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Array = npt.NDArray[np.generic]

DAY = 86_400  # seconds
NIGHT_ENDS_HOUR = 6  # the Handbook's night: hour <= 6
WEEKEND_STARTS = 5  # Monday is 0
EPOCH_WEEKDAY = 3  # 1970-01-01 was a Thursday
LARGE_RATIO = 3.0  # an amount this many times the customer's usual one is a large one
# Sums are differences of one running sum over all rows. As integers they are exact, so that no row can change another entity's features by rounding.
FIXED_POINT = 10_000


@dataclass(frozen=True)
class Window:
    """One range of the timeline per row: positions start (included) to stop (excluded)."""

    start: Ints
    stop: Ints

    @property
    def count(self) -> Ints:
        """Transactions in each row's window."""
        return self.stop - self.start

    def sum(self, values: Array) -> Floats:
        """Sum of values (in timeline order) over each row's window."""
        running = np.concatenate(([0], np.cumsum(np.rint(values.astype(np.float64) * FIXED_POINT).astype(np.int64))))
        return (running[self.stop] - running[self.start]) / FIXED_POINT

    def mean(self, values: Array, empty: float) -> Floats:
        """Mean of values over each row's window; `empty` where it holds nothing."""
        return divide(self.sum(values), self.count, empty)


@dataclass(frozen=True)
class Timeline:
    """Rows sorted by entity, then time, then original order; every array of the methods is in this order."""

    order: Ints  # original row numbers
    times: Ints  # seconds
    keys: Ints  # ascending: entities lie further apart than any window reaches
    first: Ints  # position of the row's entity's first row

    @classmethod
    def of(cls, entities: Array, times: Ints, reach_seconds: int) -> "Timeline":
        """Timeline whose windows reach back at most reach_seconds."""
        codes = np.unique(entities, return_inverse=True)[1].astype(np.int64)
        order = np.argsort(codes, kind="stable")
        codes, times = codes[order], times[order]
        span = int(times.max(initial=0) - times.min(initial=0)) + reach_seconds + 1
        return cls(order, times, codes * span + times, np.searchsorted(codes, codes))

    def trailing(self, seconds: int) -> Window:
        """The last `seconds` up to and including this transaction."""
        return Window(np.searchsorted(self.keys, self.keys - seconds, side="right"), np.arange(len(self.keys)) + 1)

    def before(self, seconds: int) -> Window:
        """The last `seconds` up to but not including this transaction."""
        window = self.trailing(seconds)
        return Window(window.start, window.stop - 1)

    def delayed(self, delay_seconds: int, seconds: int) -> Window:
        """The `seconds` that end delay_seconds ago: transactions whose labels are known by now."""
        return Window(
            np.searchsorted(self.keys, self.keys - delay_seconds - seconds, side="right"),
            self.known(delay_seconds).stop,
        )

    def known(self, delay_seconds: int) -> Window:
        """All transactions of the entity that are at least delay_seconds old."""
        return Window(self.first, np.searchsorted(self.keys, self.keys - delay_seconds, side="right"))


def transaction_features(
    columns: Mapping[str, Array], *, label_delay_days: int = 7, windows_days: Sequence[int] = (1, 7, 30)
) -> dict[str, npt.NDArray[np.float32]]:
    """Features of every transaction, in the rows' order; NaN where a value does not exist (no earlier transaction).

    columns: time_seconds (since 1970, ascending; equal times count in row order), customer and terminal (ids of any sortable type),
    amount (not NaN) and label (0 or 1; a label is read only for later rows, from label_delay_days on).
    """
    check(columns, label_delay_days, windows_days)
    delay, windows = label_delay_days * DAY, {days: days * DAY for days in windows_days}
    reach = delay + max(windows.values())
    times = columns["time_seconds"].astype(np.int64)
    amounts, labels = columns["amount"].astype(np.float64), columns["label"].astype(np.int64)
    features = {"amount": amounts, **calendar_features(times)}
    customers = Timeline.of(columns["customer"], times, reach)
    grouped, ratios = customer_features(customers, amounts[customers.order], labels[customers.order], delay, windows)
    features |= scattered(grouped, customers.order)
    ratios = scattered({"ratio": ratios}, customers.order)["ratio"]
    terminals = Timeline.of(columns["terminal"], times, reach)
    grouped = terminal_features(terminals, ratios[terminals.order], labels[terminals.order], delay, windows)
    features |= scattered(grouped, terminals.order)
    return {name: values.astype(np.float32) for name, values in features.items()}


def check(columns: Mapping[str, Array], label_delay_days: int, windows_days: Sequence[int]) -> None:
    """Refuse inputs that would silently give wrong features. Raises ValueError."""
    for name in ("time_seconds", "customer", "terminal", "amount", "label"):
        if name not in columns:
            raise ValueError(
                f"columns must hold time_seconds, customer, terminal, amount and label; {name} is missing: rename or add it"
            )
    if np.any(np.diff(columns["time_seconds"]) < 0):
        row = int(np.argmax(np.diff(columns["time_seconds"]) < 0)) + 1
        raise ValueError(
            f"time_seconds must ascend; row {row} is earlier than the row before it: sort the table by time"
        )
    if not np.all(np.isfinite(columns["amount"])):
        raise ValueError("amount must be finite in every row: drop or fill the rows where it is missing")
    if not np.all(np.isin(columns["label"], (0, 1))):
        raise ValueError("label must be 0 or 1 in every row: give transactions not yet investigated a 0")
    if label_delay_days < 0:
        raise ValueError(f"label_delay_days must not be negative, got {label_delay_days}")
    if not windows_days or min(windows_days) <= 0:
        raise ValueError(f"windows_days must be one or more positive numbers of days, got {list(windows_days)}")


def calendar_features(times: Ints) -> dict[str, Floats]:
    """Weekend and night, as 0 or 1."""
    weekday = (times // DAY + EPOCH_WEEKDAY) % 7
    hour = times % DAY // 3600
    return {
        "weekend": (weekday >= WEEKEND_STARTS).astype(np.float64),
        "night": (hour <= NIGHT_ENDS_HOUR).astype(np.float64),
    }


def customer_features(
    timeline: Timeline, amounts: Floats, labels: Ints, delay: int, windows: Mapping[int, int]
) -> tuple[dict[str, Floats], Floats]:
    """Spending habits: how much and how often, and how this amount compares. Also the ratio of each amount to the customer's usual one."""
    features = {}
    for days, seconds in windows.items():
        window = timeline.trailing(seconds)
        features[f"customer_count_{days}d"] = window.count.astype(np.float64)
        features[f"customer_mean_amount_{days}d"] = window.mean(amounts, empty=0.0)
    known, longest = timeline.known(delay), max(windows)
    legitimate = divide(known.sum(amounts * (1 - labels)), known.sum(1 - labels), np.nan)
    recent = timeline.before(windows[longest]).mean(amounts, empty=np.nan)
    ratio = divide(amounts, np.where(np.isnan(legitimate), recent, legitimate), np.nan)
    large = ratio > LARGE_RATIO
    features["amount_to_usual"] = ratio
    features["amount_to_recent"] = divide(amounts, recent, np.nan)
    for days, seconds in windows.items():
        features[f"customer_large_{days}d"] = timeline.before(seconds).sum(large)
    own = np.arange(len(amounts))
    features["customer_days_since_large"] = days_since(timeline, last_position(large)[own] + 1, timeline.first)
    features[f"customer_frauds_{longest}d"] = timeline.delayed(delay, windows[longest]).sum(labels)
    features["customer_days_since_last"] = days_since(timeline, timeline.before(0).stop, timeline.first)
    return features, ratio


def terminal_features(
    timeline: Timeline, ratios: Floats, labels: Ints, delay: int, windows: Mapping[int, int]
) -> dict[str, Floats]:
    """What is known of a terminal's frauds: their share, whether they go on, for how long, and whether their amounts explain them."""
    features = {}
    for days, seconds in windows.items():
        window = timeline.delayed(delay, seconds)
        features[f"terminal_count_{days}d"] = window.count.astype(np.float64)
        features[f"terminal_risk_{days}d"] = window.mean(labels, empty=0.0)
    known = timeline.known(delay).stop
    is_ordinary = (labels == 1) & ~(ratios > LARGE_RATIO)
    after_fraud, after_legitimate = last_position(is_ordinary) + 1, last_position(labels == 0) + 1
    # The run of frauds that is on: from the first ordinary one after the last legitimate transaction.
    run_start = next_position(is_ordinary)[np.maximum(after_legitimate[known], timeline.first)]
    is_on = run_start < known
    features["terminal_fraud_run"] = np.where(is_on, Window(np.minimum(run_start, known), known).sum(is_ordinary), 0.0)
    since_start = (timeline.times - timeline.times[np.minimum(run_start, len(labels) - 1)]) / DAY
    features["terminal_fraud_run_days"] = np.where(is_on, since_start, np.nan)
    features["terminal_days_since_fraud"] = days_since(timeline, after_fraud[known], timeline.first)
    features["terminal_days_since_legitimate"] = days_since(timeline, after_legitimate[known], timeline.first)
    longest = timeline.delayed(delay, max(windows.values()))
    features[f"terminal_ordinary_frauds_{max(windows)}d"] = longest.sum(is_ordinary)
    return features


def days_since(timeline: Timeline, stop: Ints, first: Ints) -> Floats:
    """Days since the transaction just before position stop; NaN where that is not the entity's own."""
    then = timeline.times[np.maximum(stop - 1, 0)]
    return np.where(stop > first, (timeline.times - then) / DAY, np.nan)


def last_position(flags: npt.NDArray[np.bool_]) -> Ints:
    """For each position p, 0 to len(flags): the last position before p that is flagged, or -1."""
    marks = np.where(flags, np.arange(len(flags)), -1)
    return np.concatenate(([-1], np.maximum.accumulate(marks)))


def next_position(flags: npt.NDArray[np.bool_]) -> Ints:
    """For each position p, 0 to len(flags): the first position from p on that is flagged, or len(flags)."""
    marks = np.where(flags, np.arange(len(flags)), len(flags))
    return np.concatenate((np.minimum.accumulate(marks[::-1])[::-1], [len(flags)]))


def divide(numerator: npt.NDArray[np.float64], denominator: Array, empty: float) -> Floats:
    """numerator / denominator, `empty` where the denominator is 0."""
    ok = denominator != 0
    return np.where(ok, numerator / np.where(ok, denominator, 1), empty)


def scattered(grouped: Mapping[str, Floats], order: Ints) -> dict[str, Floats]:
    """Columns from timeline order back to the original order of the rows."""
    result = {}
    for name, values in grouped.items():
        result[name] = np.empty_like(values)
        result[name][order] = values
    return result
