"""Simulated card transactions, after the published method of the Fraud Detection Handbook.

Customers and terminals lie on a plane of 100 x 100; a customer buys at the terminals nearby, with a spending profile of
its own. Frauds are large amounts, compromised terminals and stolen cards.
Le Borgne et al., https://fraud-detection-handbook.github.io/fraud-detection-handbook (chapter 3); the code is our own.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from datamodules.cache import cache_file, write_atomically

log = logging.getLogger(__name__)
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

VERSION = 1  # of the method: a new one makes old cache files stale
PLANE = 100.0
DAY = 86_400
TIME_OF_DAY_STD = 20_000.0  # seconds around noon
LARGE_AMOUNT = 220.0
TERMINAL_COMPROMISED_DAYS = 28
CARD_STOLEN_DAYS = 14
STOLEN_CARD_FACTOR = 5.0
STOLEN_CARD_SHARE = 3  # one in so many of a stolen card's transactions is a fraud
CUSTOMERS_AT_ONCE = 1024  # bounds the memory that distances take


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """Everything that determines a simulated table.

    Attributes:
        start_date: day of the first transactions, in ISO form.
        radius: how far a customer goes to a terminal, on a plane of 100 x 100.
        terminals_compromised_per_day: terminals that, from a day on, see only frauds for 28 days.
        cards_stolen_per_day: customers of whose transactions, from a day on, a third are frauds for 14 days.
    """

    num_customers: int
    num_terminals: int
    num_days: int
    start_date: str
    radius: float
    terminals_compromised_per_day: int
    cards_stolen_per_day: int
    seed: int

    def __post_init__(self) -> None:
        for name in ("terminals_compromised_per_day", "cards_stolen_per_day"):
            available = self.num_terminals if name.startswith("terminals") else self.num_customers
            if not 0 <= getattr(self, name) <= available:
                raise ValueError(f"{name} must be between 0 and {available}, got {getattr(self, name)}")


def simulate(simulation: Simulation, *, with_scenario: bool = False) -> pa.Table:
    """Transactions in order of time: transaction_id, time, customer_id, terminal_id, amount and is_fraud.

    with_scenario adds which kind of fraud it is (0 none, 1 amount, 2 terminal, 3 card): it gives the label away.
    """
    generator = np.random.default_rng(simulation.seed)
    day, second, customer, amount, terminal = _transactions(simulation, generator)
    order = np.argsort(day * DAY + second, kind="stable")
    day, second, customer, terminal = (values[order] for values in (day, second, customer, terminal))
    amount = amount[order]
    scenario = np.where(amount > LARGE_AMOUNT, 1, 0)
    scenario[_at_compromised_terminals(simulation, day, terminal, generator)] = 2
    stolen = _with_stolen_cards(simulation, day, customer, generator)
    amount[stolen] = np.round(amount[stolen] * STOLEN_CARD_FACTOR, 2)
    scenario[stolen] = 3
    start = np.datetime64(simulation.start_date, "s").astype(np.int64)
    columns = {
        "transaction_id": pa.array(np.arange(len(day))),
        # In ms, since Parquet has no seconds: a cached table must equal a fresh one.
        "time": pa.array((start + day * DAY + second) * 1000).cast(pa.timestamp("ms")),
        "customer_id": pa.array(customer),
        "terminal_id": pa.array(terminal),
        "amount": pa.array(amount),
        "is_fraud": pa.array((scenario > 0).astype(np.int8)),
    }
    return pa.table(columns | ({"scenario": pa.array(scenario.astype(np.int8))} if with_scenario else {}))


def simulate_cached(simulation: Simulation) -> pa.Table:
    """`simulate`, kept as a Parquet file in the cache folder; a damaged file is made again."""
    path = cache_path(simulation)
    try:
        return pa.parquet.read_table(path, page_checksum_verification=True)
    except FileNotFoundError:
        pass
    except (OSError, pa.ArrowException) as error:
        log.warning("making the damaged cache file %s again (%s)", path, str(error).splitlines()[0])
    table = simulate(simulation)
    try:
        write_atomically(path, lambda file: pa.parquet.write_table(table, file, write_page_checksum=True))
    except OSError as error:
        log.warning("the simulated transactions are not cached (%s); set FULLCYCLE_CACHE to a folder", error)
    return table


def cache_path(simulation: Simulation) -> Path:
    """Where the table is kept."""
    return cache_file("transactions", {"version": VERSION, **asdict(simulation)}, ".parquet")


def _transactions(simulation: Simulation, generator: np.random.Generator) -> tuple[Ints, Ints, Ints, Floats, Ints]:
    """Day, second of the day, customer, amount and terminal of each transaction, in no order."""
    customers = generator.uniform(0, PLANE, (simulation.num_customers, 2))
    terminals = generator.uniform(0, PLANE, (simulation.num_terminals, 2))
    mean_amount = generator.uniform(5, 100, simulation.num_customers)
    per_day = generator.uniform(0, 4, simulation.num_customers)
    near, first, count = _terminals_near(customers, terminals, simulation.radius)
    per_day[count == 0] = 0.0
    number = generator.poisson(per_day, (simulation.num_days, simulation.num_customers))
    day, customer = (np.repeat(place.ravel(), number.ravel()) for place in np.indices(number.shape))
    moment = generator.normal(DAY / 2, TIME_OF_DAY_STD, len(day))
    is_kept = (moment > 0) & (moment < DAY)
    day, customer, second = day[is_kept], customer[is_kept], moment[is_kept].astype(np.int64)
    mean = mean_amount[customer]
    amount = np.asarray(generator.normal(mean, mean / 2), np.float64)
    amount = np.where(amount < 0, generator.uniform(0, 2 * mean), amount).round(2)
    terminal = near[first[customer] + (generator.random(len(day)) * count[customer]).astype(np.int64)]
    return day, second, customer, amount, terminal


def _terminals_near(customers: Floats, terminals: Floats, radius: float) -> tuple[Ints, Ints, Ints]:
    """Terminals within the radius of each customer, one list after another; where each list starts, and its length."""
    near, count = [], []
    for start in range(0, len(customers), CUSTOMERS_AT_ONCE):
        offset = customers[start : start + CUSTOMERS_AT_ONCE, None, :] - terminals[None, :, :]
        is_near = np.square(offset).sum(axis=2) < radius**2
        near.append(np.nonzero(is_near)[1])
        count.append(is_near.sum(axis=1))
    lengths = np.concatenate(count)
    return np.concatenate(near), np.cumsum(lengths) - lengths, lengths


def _at_compromised_terminals(
    simulation: Simulation, day: Ints, terminal: Ints, generator: np.random.Generator
) -> Ints:
    """Rows at a terminal that is compromised on that day."""
    find = _Finder(terminal, day, simulation.num_days)
    rows = [np.empty(0, np.int64)]
    for today in range(simulation.num_days):
        chosen = generator.choice(simulation.num_terminals, simulation.terminals_compromised_per_day, replace=False)
        rows += [find.rows(int(entity), today, TERMINAL_COMPROMISED_DAYS) for entity in chosen]
    return np.concatenate(rows)


def _with_stolen_cards(simulation: Simulation, day: Ints, customer: Ints, generator: np.random.Generator) -> Ints:
    """A random third of the rows of each customer whose card is stolen on that day; each row once."""
    find = _Finder(customer, day, simulation.num_days)
    rows = [np.empty(0, np.int64)]
    for today in range(simulation.num_days):
        for entity in generator.choice(simulation.num_customers, simulation.cards_stolen_per_day, replace=False):
            candidates = find.rows(int(entity), today, CARD_STOLEN_DAYS)
            rows.append(generator.choice(candidates, len(candidates) // STOLEN_CARD_SHARE, replace=False))
    return np.unique(np.concatenate(rows))


class _Finder:
    """Finds the rows of one entity within a range of days."""

    def __init__(self, entity: Ints, day: Ints, num_days: int) -> None:
        key = entity * num_days + day
        self.num_days = num_days
        self.order = np.argsort(key, kind="stable")
        self.key = key[self.order]

    def rows(self, entity: int, first_day: int, num_days: int) -> Ints:
        end = min(first_day + num_days, self.num_days)
        bounds: Sequence[int] = [entity * self.num_days + first_day, entity * self.num_days + end]
        start, stop = np.searchsorted(self.key, bounds)
        return self.order[start:stop]
