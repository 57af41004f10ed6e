"""Fraud in raw card transactions, real or simulated: the inputs are what was known at the moment of each."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Unpack

import numpy as np
import pyarrow as pa
from annotated_types import Ge, Gt
from torch import Tensor

from datamodules.columns import Kind
from datamodules.fraud.datamodule import Count, FraudDataModule, Label, Options
from datamodules.fraud.rows import Names, Rows, as_tensors, concatenated, transactions
from datamodules.fraud.simulator import Simulation, simulate_cached
from datamodules.schema import Schema, check, encode, require_columns
from datamodules.sources import read_table

BATCH_ROWS = 65_536


class FraudTransactions(FraudDataModule):
    """Raw transactions, CSV or Parquet, a file or a folder, local or on S3; features.py makes the inputs of them.

    Other data are read whole, and their windows hold their own rows and those of `history`: give the last weeks before
    them, or a customer's and a terminal's first rows look like their first ever.

    Args:
        path: where the transactions are.
        customer: column that names the customer.
        terminal: column that names the terminal or merchant.
        amount: column with the amount.
        time: column with the moment.
        label: column that tells frauds; where missing, the row counts in windows but neither trains nor tests.
        positive: value of the label that is a fraud; None for the rarer one.
        label_delay_days: days after which the label of a transaction is known.
        windows_days: lengths of the trailing windows.
        extra_inputs: further columns that are inputs as they are.
        history: where the transactions are that came before other data; None for none.
        options: see `Options`.
    """

    def __init__(
        self,
        *,
        path: str,
        customer: str,
        terminal: str,
        amount: str,
        time: str,
        label: str,
        positive: Label,
        label_delay_days: Annotated[int, Ge(0)],
        windows_days: list[int],
        extra_inputs: list[str],
        history: str | None,
        **options: Unpack[Options],
    ) -> None:
        names: Names = {"target": label, "time": time, "amount": amount, "customer": customer, "terminal": terminal}
        raw = {"label_delay_days": label_delay_days, "windows_days": windows_days, "extra_inputs": extra_inputs}
        super().__init__(names, positive=positive, left_out={}, raw=raw, options=options)
        self.path, self.history = path, history
        self.name = path.rstrip("/").rsplit("/", 1)[-1]

    def read(self) -> pa.Table:
        """Table as it is stored."""
        return read_table(self.path)

    def arrange(self, table: pa.Table, raw: Mapping[str, Any], target: Mapping[str, Any], notes: list[str]) -> Rows:
        """Transactions in order of time, with their features."""
        require_columns(table.schema, raw["extra_inputs"])
        return transactions(table, raw, target, notes)

    def arrange_other(self, table: pa.Table, schema: Schema) -> Rows:
        """The same for other data; the transactions of `history` count in windows, but are left out."""
        past = table.slice(0, 0) if self.history is None else read_table(self.history)
        rows = self.arrange(concatenated([past, table]), schema["raw"], schema["target"], self.notes)
        rows = rows.take(np.flatnonzero(rows.order >= len(past)))
        return Rows(rows.inputs, rows.given, rows.order - len(past))

    def iter_other(self, uri: str, schema: Schema) -> Iterator[tuple[pa.RecordBatch, dict[str, Tensor]]]:
        """Batches of another table, in its own order and labelled or not, each with the model's inputs."""
        table = read_table(uri)
        self.check_other(table.schema, schema)
        rows = self.arrange_other(table, schema)
        if len(rows.order) < len(table):
            raise ValueError(f"cannot score {len(table) - len(rows.order):,} rows of {uri!r}: {self.notes[-1]}")
        place = np.empty(len(table), np.int64)
        place[rows.order] = np.arange(len(table))
        for start in range(0, max(len(table), 1), BATCH_ROWS):
            inputs = rows.inputs.take(place[start : start + BATCH_ROWS])
            batches = table.slice(start, BATCH_ROWS).combine_chunks().to_batches()
            batch = batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)
            yield batch, as_tensors(encode(inputs, schema, self.unseen))

    def check_other(self, table_schema: pa.Schema, schema: Schema) -> None:
        """Raise ValueError naming each column of transactions that another table lacks or holds as another type."""
        names, extra = schema["raw"]["names"], schema["raw"]["extra_inputs"]
        require_columns(table_schema, [names[role] for role in ("customer", "terminal", "time")])
        kinds: dict[str, Kind] = {names["amount"]: "numeric"}
        check(table_schema, {"columns": [column for column in schema["columns"] if column["name"] in extra]}, kinds)


class FraudSimulated(FraudTransactions):
    """Simulated transactions: see simulator.py for what they are modelled on; made once and cached.

    Args:
        num_customers: customers.
        num_terminals: terminals.
        num_days: days.
        start_date: the first day, in ISO form.
        radius: how far a customer goes to a terminal, on a plane of 100 x 100.
        terminals_compromised_per_day: terminals that, from a day on, see only frauds for 28 days.
        cards_stolen_per_day: customers of whose transactions, from a day on, a third are frauds for 14 days.
        simulation_seed: another one makes another data set.
        label_delay_days: days after which the label of a transaction is known.
        windows_days: lengths of the trailing windows.
        history: where the transactions are that came before other data; None for none.
        options: see `Options`.
    """

    def __init__(
        self,
        *,
        num_customers: Count,
        num_terminals: Count,
        num_days: Count,
        start_date: str,
        radius: Annotated[float, Gt(0)],
        terminals_compromised_per_day: Annotated[int, Ge(0)],
        cards_stolen_per_day: Annotated[int, Ge(0)],
        simulation_seed: Annotated[int, Ge(0)],
        label_delay_days: Annotated[int, Ge(0)],
        windows_days: list[int],
        history: str | None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            path="fraud_simulated",
            customer="customer_id",
            terminal="terminal_id",
            amount="amount",
            time="time",
            label="is_fraud",
            positive=1,
            label_delay_days=label_delay_days,
            windows_days=windows_days,
            extra_inputs=[],
            history=history,
            **options,
        )
        self.simulation = Simulation(
            num_customers=num_customers,
            num_terminals=num_terminals,
            num_days=num_days,
            start_date=start_date,
            radius=radius,
            terminals_compromised_per_day=terminals_compromised_per_day,
            cards_stolen_per_day=cards_stolen_per_day,
            seed=simulation_seed,
        )

    def prepare_data(self) -> None:
        """Make and cache the transactions: one process does, before the others read them."""
        simulate_cached(self.simulation)

    def read(self) -> pa.Table:
        """Transactions, from the cache where they are."""
        return simulate_cached(self.simulation)
