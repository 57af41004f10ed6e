"""Fraud in any table with a binary target, whose columns sort themselves out."""

from collections.abc import Mapping
from typing import Any, Unpack

import pyarrow as pa

from datamodules.fraud.datamodule import FraudDataModule, Label, Options
from datamodules.fraud.rows import Names, Rows, in_order_of_time
from datamodules.sources import read_table


class FraudTable(FraudDataModule):
    """Any table: CSV or Parquet, a file or a folder, local or on S3. Other data stream in constant memory.

    Args:
        path: where the table is.
        target: column to predict.
        time: column that orders the rows, a date or time or a number of seconds; None for their order in the file.
        drop: columns that are no inputs.
        positive: value of the target that is the positive class; None for the rarer one.
        amount: column with the cost of a missed positive; an input as well.
        customer: column that names the customer; no input.
        weight: column with the weight of the row in training and metrics; no input.
        options: see `Options`.
    """

    def __init__(
        self,
        *,
        path: str,
        target: str,
        time: str | None,
        drop: list[str],
        positive: Label,
        amount: str | None,
        customer: str | None,
        weight: str | None,
        **options: Unpack[Options],
    ) -> None:
        left_out = dict.fromkeys(drop, "dropped by data.drop")
        left_out |= {customer: "it names the customer"} if customer else {}
        left_out |= {weight: "it weighs the row"} if weight else {}
        names: Names = {"target": target, "time": time, "amount": amount, "customer": customer, "weight": weight}
        super().__init__(names, positive=positive, left_out=left_out, raw={}, options=options)
        self.path = path
        self.name = path.rstrip("/").rsplit("/", 1)[-1]

    def read(self) -> pa.Table:
        """Table as it is stored."""
        return read_table(self.path)

    def arrange(self, table: pa.Table, raw: Mapping[str, Any], target: Mapping[str, Any], notes: list[str]) -> Rows:
        """Rows in order of time; every column is a candidate for the model's inputs."""
        time = raw["names"]["time"]
        return in_order_of_time(table, time if time in table.column_names else None, notes)
