"""What all fraud data share: rows are split, encoded by a schema of the training rows, and batched."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Annotated, Any, Literal, TypedDict

import numpy as np
import pyarrow as pa
import torch
from annotated_types import Ge, Gt, Le, Lt
from numpy.typing import NDArray
from pytorch_lightning import LightningDataModule
from torch import Tensor

from datamodules.columns import entities, is_number
from datamodules.fraud.bins import fit_bins
from datamodules.fraud.leakage import num_shared, telling_columns
from datamodules.fraud.rows import Names, Rows, as_tensors, moments, to_tensors, with_target
from datamodules.fraud.splits import How, split_by_dates, split_rows
from datamodules.loading import TensorLoader
from datamodules.schema import (
    Schema,
    check,
    describe_target,
    encode,
    encode_raw,
    encode_target,
    infer,
    raw,
    require_columns,
)
from datamodules.sources import fingerprint, iter_batches, read_table

log = logging.getLogger(__name__)
Share = Annotated[float, Gt(0), Lt(1)]
Count = Annotated[int, Gt(0)]
Cost = Annotated[float, Ge(0)]
Label = bool | int | float | str | None

TRAINING = ("numeric", "categorical", "timestamp", "target", "weight")
EVAL_BATCH_SIZE = 8192


class Options(TypedDict):
    """What all fraud data have in common.

    Attributes:
        split: the newest rows test (time), or any (random), or those of other customers (customer).
        train_share: share of the rows that train.
        val_share: share of the rows that validate; the rest test.
        splits: instead of shares, {train: [start, end], val: ..., test: ...} with ISO dates; null for shares.
        cost_false_negative: cost of a missed fraud; "amount" for its amount.
        cost_false_positive: cost of a false alert.
        alert_budget: share of the rows that may be alerts.
        batch_size: rows per optimizer step, over all processes together.
        batches_per_call: mini-batches handed to one training_step.
        positive_share: share of frauds in a training batch, by drawing them again; 0 to leave the order alone.
        max_categories: a text column with more different values is hashed into so many buckets.
        num_quantiles: bins of a numeric column by its quantiles.
        num_thresholds: further bins around the thresholds of a decision tree.
        seed: of the order of training rows and of a random split.
    """

    split: How
    train_share: Share
    val_share: Share
    splits: dict[str, list[str] | None] | None
    cost_false_negative: Cost | Literal["amount"]
    cost_false_positive: Cost
    alert_budget: Annotated[float, Gt(0), Le(1)]
    batch_size: Count
    batches_per_call: Count
    positive_share: Annotated[float, Ge(0), Lt(1)]
    max_categories: Count
    num_quantiles: Count
    num_thresholds: Annotated[int, Ge(0)]
    seed: Annotated[int, Ge(0)]


class FraudDataModule(LightningDataModule):
    """Splits, encodes and batches rows; `FraudTable` and the others say where the rows come from.

    After `setup`: `schema`; `tensors[split]` with numeric [N, F], categorical [N, C], timestamp [N, T], target, weight,
    amount (cost of a miss), day and customer [N]; `fingerprint` of the table; `notes` for the user; one-line `summary`.
    `load_other` and `iter_other` read other data by a finished run's schema; `unseen` counts their unknown categories.

    Args:
        names: columns of the table by their role: target, time, amount, customer, ...
        positive: value of the target that is the positive class; None for the rarer one.
        left_out: columns that are no inputs, and why.
        raw: what else `arrange` needs; kept in the schema.
        options: see `Options`.
    """

    name = "table"

    def __init__(
        self, names: Names, *, positive: Label, left_out: Mapping[str, str], raw: Mapping[str, Any], options: Options
    ) -> None:
        super().__init__()
        if options["cost_false_negative"] == "amount" and names.get("amount") is None:
            raise ValueError(
                "cost_false_negative=amount needs the column that holds the amount: give data.amount=COLUMN, or the "
                "cost as a number (data.cost_false_negative=10)"
            )
        self.raw = {"names": names, "cost_false_negative": options["cost_false_negative"], **raw}
        self.positive, self.left_out, self.options = positive, left_out, options
        self.seed = options["seed"]
        self.schema: Schema = {}
        self.tensors: dict[str, dict[str, Tensor]] = {}
        self.fingerprint, self.summary = "", ""
        self.notes: list[str] = []
        self.unseen: Counter[str] = Counter()

    def read(self) -> pa.Table:
        """Table as it is stored."""
        raise NotImplementedError

    def arrange(self, table: pa.Table, raw: Mapping[str, Any], target: Mapping[str, Any], notes: list[str]) -> Rows:
        """Rows of a table in time order, with what the model may learn from."""
        raise NotImplementedError

    def arrange_other(self, table: pa.Table, schema: Schema) -> Rows:
        """The same for other data, by a finished run's schema."""
        return self.arrange(table, schema["raw"], schema["target"], self.notes)

    def setup(self, stage: str | None = None) -> None:
        """Read, split and encode; a second call does nothing."""
        if self.tensors:
            return
        rows, parts, target = self._rows()
        self.schema = self._schema(rows.take(parts["train"]).inputs, target)
        for split, chosen in parts.items():
            self.tensors[split] = to_tensors(rows.take(chosen), self.schema, self.unseen)
        self._describe()

    def raw_inputs(self, split: str, num_rows: int) -> dict[str, NDArray[Any]]:
        """What an exported graph takes of the first rows of a split, after `setup`; the table is read again."""
        notes = list(self.notes)
        rows, parts, _ = self._rows()
        self.notes = notes
        return raw(rows.take(parts[split][:num_rows]).inputs, self.schema)

    def encode_raw(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
        """The model's inputs of what an exported graph takes."""
        return as_tensors(encode_raw(arrays, self.schema))

    def load_other(self, uri: str, schema: Schema) -> dict[str, Tensor]:
        """All labelled rows of another table in time order, by a finished run's schema; keys as in `tensors[split]`."""
        table, raw = read_table(uri), schema["raw"]
        self.check_other(table.schema, schema)
        roles = ["target", "amount"] if raw["cost_false_negative"] == "amount" else ["target"]
        require_columns(table.schema, [raw["names"][role] for role in roles])
        rows = self.arrange_other(table, schema)
        return to_tensors(with_target(rows, raw["names"]["target"], self.notes), schema, self.unseen)

    def iter_other(self, uri: str, schema: Schema) -> Iterator[tuple[pa.RecordBatch, dict[str, Tensor]]]:
        """Batches of another table, in its own order and labelled or not, each with the model's inputs."""
        for index, batch in enumerate(iter_batches(uri)):
            if index == 0:
                self.check_other(batch.schema, schema)
            yield batch, as_tensors(encode(batch, schema, self.unseen))

    def check_other(self, table_schema: pa.Schema, schema: Schema) -> None:
        """Raise ValueError naming each input that another table lacks or holds as another type."""
        check(table_schema, schema)

    def train_dataloader(self) -> TensorLoader:
        """Shuffled training batches; lists of `batches_per_call` of them where that is set."""
        return TensorLoader(
            self._on_device({name: self.tensors["train"][name] for name in TRAINING}),
            batch_size=self.options["batch_size"],
            shuffle=True,
            seed=self.options["seed"],
            batches_per_call=self.options["batches_per_call"],
            positive_share=self.options["positive_share"],
        )

    def val_dataloader(self) -> TensorLoader | list[TensorLoader]:
        """Validation batches in time order; nothing where there are no validation rows."""
        return self.eval_dataloader(self.tensors["val"])

    def test_dataloader(self) -> TensorLoader | list[TensorLoader]:
        """Test batches in time order; nothing where there are no test rows."""
        return self.eval_dataloader(self.tensors["test"])

    def eval_dataloader(self, tensors: dict[str, Tensor]) -> TensorLoader | list[TensorLoader]:
        """Batches of rows such as `load_other` gives, in their order."""
        if not len(tensors["target"]):
            return []
        return TensorLoader(self._on_device(tensors), batch_size=EVAL_BATCH_SIZE, shuffle=False)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Return the batch as it is: the loaders' tensors live on the device."""
        return batch

    def _on_device(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        return {name: tensor.to(device) for name, tensor in tensors.items()}

    def _rows(self) -> tuple[Rows, dict[str, NDArray[np.int64]], dict[str, Any]]:
        """All labelled rows in order, the places of each split's, and what is known of the target."""
        table, names = self.read(), self.raw["names"]
        require_columns(table.schema, [name for name in (*names.values(), *self.left_out) if name])
        self.fingerprint = fingerprint(table)
        target = describe_target(table[names["target"]], str(names["target"]), self.positive)
        rows = with_target(self.arrange(table, self.raw, target, self.notes), str(names["target"]), self.notes)
        return rows, self._split(rows, encode_target(rows.given[names["target"]], target)), target

    def _split(self, rows: Rows, labels: NDArray[np.float32]) -> dict[str, NDArray[np.int64]]:
        names, options = self.raw["names"], self.options
        times = moments(rows.given[names["time"]]) if names.get("time") else None
        if options["splits"] is not None:
            if times is None:
                raise ValueError("splits needs the column that holds the time: give data.time=COLUMN")
            return split_by_dates(times, options["splits"])
        customers = entities(rows.given[names["customer"]]) if names.get("customer") else None
        shares = (options["train_share"], options["val_share"])
        parts = split_rows(
            options["split"], labels=labels, times=times, customers=customers, shares=shares, seed=options["seed"]
        )
        self._check_leakage(parts, times, customers)
        return parts

    def _schema(self, training: pa.Table, target: Schema) -> Schema:
        options, names = self.options, self.raw["names"]
        left_out = {name: why for name, why in self.left_out.items() if name in training.column_names}
        if (time := names.get("time")) in training.column_names and is_number(training[time].type):
            left_out[time] = "it counts up: newer rows lie outside what was learned"
        schema = infer(
            training,
            target=target["name"],
            positive=target["positive"],
            max_categories=options["max_categories"],
            fit_bins=partial(
                fit_bins, num_quantiles=options["num_quantiles"], num_thresholds=options["num_thresholds"]
            ),
            left_out=left_out,
        )
        cost = {
            "false_negative": options["cost_false_negative"],
            "false_positive": options["cost_false_positive"],
            "alert_budget": options["alert_budget"],
        }
        return schema | {"cost": cost, "weight": names.get("weight"), "raw": self.raw}

    def _check_leakage(
        self, parts: dict[str, NDArray[np.int64]], times: NDArray[np.int64] | None, customers: NDArray[np.int64] | None
    ) -> None:
        if self.options["split"] == "time" and times is None:
            self.notes.append("no time column is given: the rows count as in order of time (else: data.split=random)")
        if self.options["split"] == "random" and customers is not None:
            num_known, num_all = num_shared(customers, parts["train"], parts["test"])
            if num_known:
                self.notes.append(
                    f"leakage: {num_known:,} of the {num_all:,} customers in the test rows are in the training rows "
                    "too (data.split=customer keeps them apart)"
                )
                log.warning(self.notes[-1])

    def _describe(self) -> None:
        target, columns = self.schema["target"], self.schema["columns"]
        sizes = {split: len(tensors["target"]) for split, tensors in self.tensors.items()}
        num_positive = sum(float(tensors["target"].sum()) for tensors in self.tensors.values())
        kinds = Counter(column["kind"] for column in columns)
        found = [f"{kinds[kind]} {kind}" for kind in ("numeric", "boolean", "categorical", "timestamp") if kinds[kind]]
        how = "date" if self.options["splits"] else self.options["split"]
        self.summary = (
            f"{self.name}: {sum(sizes.values()):,} rows ({100 * num_positive / sum(sizes.values()):.2g} % positive), "
            f"{' / '.join(f'{size:,}' for size in sizes.values())} by {how}, {', '.join(found)}"
        )
        self.notes.append(f"{target['name']}={target['positive']} is positive, {target['negative']} negative")
        self.notes += [f"left out: {column['name']} ({column['reason']})" for column in self.schema["left_out"]]
        hashed = [column["name"] for column in columns if column.get("hash_buckets")]
        self.notes += [f"hashed: {name} (more than {self.options['max_categories']} values)" for name in hashed]
        telling = telling_columns(self.tensors["train"], self.schema)
        self.notes += [f"leakage? {name} alone tells the label: data.drop it if it comes after" for name in telling]
        for split in ("val", "test"):
            target_of_split = self.tensors[split]["target"]
            if len(target_of_split) and not target_of_split.any():
                self.notes.append(f"the {split} rows have no positive: most metrics are undefined there")
