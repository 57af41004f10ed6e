"""Texts as token ids: ragged in memory, padded batch by batch, batches filled by a budget of tokens.

N rows, B rows of one batch, L the longest of them in tokens, C columns of token ids.
"""

import time
import warnings
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.loading import Batch, Loader, epoch_order, rank_and_world_size
from datamodules.texts import Texts

EXACT = 24  # up to this length, every length is a bucket of its own
EVAL_BATCH_TOKENS = 32_768
EVAL_BATCH_ROWS = 2_048
STEP = 1.04  # from there on, a bucket is so much longer than the one before it
PAIR_STEP = 1.08  # of rows with two texts: coarser, so that rows of one length are many enough to sort by the other


class Sequences:
    """Rows of token ids, one after another: row i is `values[offsets[i] : offsets[i + 1]]`.

    Args:
        values: int32 [all tokens]; a view of a memory-mapped file will do.
        offsets: int64 [N + 1], ascending.
    """

    def __init__(self, values: Tensor, offsets: Tensor) -> None:
        self.values, self.offsets = values, offsets

    @classmethod
    def of(cls, column: pa.Array) -> "Sequences":
        """Those of an Arrow column of lists of int32, without a copy of the ids."""
        offsets = np.asarray(column.offsets).astype(np.int64)
        return cls(_tensor(np.asarray(column.values)), torch.from_numpy(offsets))

    @classmethod
    def of_lists(cls, lists: list[list[int]]) -> "Sequences":
        """Those of Python lists."""
        return cls.of(pa.array(lists, pa.large_list(pa.int32())))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> Tensor:
        """Tokens of each row, int64 [N]."""
        return self.offsets[1:] - self.offsets[:-1]

    def to(self, device: torch.device | str) -> "Sequences":
        """The same on a device."""
        return Sequences(self.values.to(device), self.offsets.to(device))

    def padded(self, rows: Tensor, pad: int, *, length: int | None = None) -> Tensor:
        """Token ids of some rows, int64 [B, L], `pad` after the end of each; L is `length` where that is given."""
        lengths = self.lengths[rows]
        if length is None:
            length = int(lengths.max()) if len(lengths) else 0
        place = torch.arange(length, device=rows.device)
        index = self.offsets[rows].unsqueeze(1) + place
        ids = self.values[index.clamp_(max=max(len(self.values) - 1, 0))] if len(self.values) else index.int()
        return torch.where(place < lengths.unsqueeze(1), ids, pad).long()


def bucket_lengths(lengths: NDArray[np.int64], step: float = STEP) -> NDArray[np.int64]:
    """Lengths rounded up to a fixed grid: every length up to 24, then steps of 4 %."""
    longest = int(lengths.max(initial=1))
    grid = list(range(EXACT + 1))
    while grid[-1] < longest:
        grid.append(max(grid[-1] + 1, int(grid[-1] * step)))
    edges = np.array(grid, np.int64)
    return edges[np.searchsorted(edges, lengths)]


def by_length(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """A key of each row, [N], by which rows of nearly equal lengths lie side by side; lengths: [N, C], C of 1 or 2.

    Pairs lie by the longer of the two, and among equals by the difference: up, then down, then up again, so that rows
    on both sides of a border are alike as well.
    """
    keys = np.unique(lengths.max(axis=1, initial=0), return_inverse=True)[1].reshape(-1)
    if lengths.shape[1] == 2:
        differences = lengths[:, 0] - lengths[:, 1]
        most = int(np.abs(differences).max(initial=0))
        keys = keys * (2 * most + 1) + np.where(keys % 2, -differences, differences) + most
        keys = np.unique(keys, return_inverse=True)[1].reshape(-1)
    return keys.astype(np.int64)


def cut(lengths: NDArray[np.int64], batch_tokens: int, max_rows: int) -> NDArray[np.int64]:
    """Where batches begin, and the end, so that padded tokens <= batch_tokens; a batch has at least one row.

    lengths: of the rows in their order, [N], or [N, C] where rows have several texts, each padded on its own.
    """
    lengths = lengths if lengths.ndim == 2 else lengths[:, np.newaxis]
    begins = [0]
    while begins[-1] < len(lengths):
        first = begins[-1]
        most = min(max(1, batch_tokens // max(1, int(lengths[first].sum()))), max_rows)
        longest = np.maximum.accumulate(lengths[first : first + most]).sum(axis=1)
        begins.append(first + max(1, int((longest * np.arange(1, len(longest) + 1) <= batch_tokens).sum())))
    return np.array(begins, np.int64)


class SequenceLoader(Loader):
    """Batches of about `batch_tokens` tokens each, of rows that are nearly equally long.

    Order, a pure function of (seed, epoch, batch_tokens): an epoch's permutation, sorted stably by rounded length, is
    cut into batches, and these are shuffled. Where the cuts are depends on the lengths alone: every epoch has the same
    number of batches. Without `shuffle` the rows come by rounded length, each once; `row` tells which they are.

    Rows may have several columns of tokens, as a source and its target: `by_length` sorts them, each is padded on its
    own, and all count. `batch_tokens` is the global one, and counts padding: rank r of R takes every R-th row of each
    global batch, and all ranks pad to the longest row of the global batch. The rest is as in `loading.TensorLoader`.

    Args:
        tensors: columns of N rows; those that are Sequences are padded, those that are Texts become lists.
        pad: token id of padding.
        batch_tokens: rows of a global batch times their longest; of several columns, times the sum of the longest.
        max_rows: rows of a global batch, however short they are.
        shuffle: for training.
        seed: of the order.
        batches_per_call: mini-batches of one list; None for single batches.
        predicted: column whose tokens, but for the first of each row, are predicted: a batch's `global_tokens` is their
            number on all ranks.

    Attributes:
        seconds_waiting: time spent in gathering batches since the loader was made.
        rows_seen: rows of all ranks handed out since the loader was made.
        tokens_seen: their tokens, without padding.
    """

    def __init__(
        self,
        tensors: Mapping[str, Any],
        *,
        pad: int,
        batch_tokens: int,
        max_rows: int,
        shuffle: bool,
        seed: int = 0,
        batches_per_call: int | None = None,
        predicted: str | None = None,
    ) -> None:
        sizes = {name: len(values) for name, values in tensors.items()}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"columns must have one length; got {sizes}")
        self.tensors, self.pad, self.predicted = dict(tensors), pad, predicted
        texts = {name: values for name, values in tensors.items() if isinstance(values, Sequences)}
        self.lengths: dict[str, NDArray[np.int64]] = {name: of.lengths.cpu().numpy() for name, of in texts.items()}
        step = STEP if len(texts) == 1 else PAIR_STEP
        rounded = np.stack([bucket_lengths(lengths, step) for lengths in self.lengths.values()], axis=1)
        self.keys = by_length(rounded)
        order = np.argsort(self.keys, kind="stable")
        self.begins = cut(rounded[order], batch_tokens, max_rows)
        super().__init__(
            num_rows=len(order),
            num_batches=len(self.begins) - 1,
            shuffle=shuffle,
            seed=seed,
            batches_per_call=batches_per_call,
        )
        self.tokens_seen = 0

    def __iter__(self) -> Iterator[Any]:
        start = time.perf_counter()
        batches = self.batches()
        for first, last in self.calls():
            call = [self._gather(rows) for rows in batches[first:last]]
            self.seconds_waiting += time.perf_counter() - start
            yield call if self.batches_per_call else call[0]
            start = time.perf_counter()

    def batches(self) -> list[NDArray[np.int64]]:
        """Row numbers of this epoch's global batches, in their order."""
        order = epoch_order(self.num_rows, seed=self.seed, epoch=self.epoch).numpy() if self.shuffle else None
        keys = self.keys if order is None else self.keys[order]
        places = np.argsort(keys, kind="stable")
        rows = np.split(places if order is None else order[places], self.begins[1:-1])
        if order is None or not self.num_rows:
            return rows if self.num_rows else []
        shuffled = np.random.default_rng((self.seed, self.epoch)).permutation(self.num_batches)
        return [rows[place] for place in shuffled]

    def padding(self, *names: str) -> float:
        """Share of an epoch's ids that is padding; of these columns, or of all."""
        columns = [lengths for name, lengths in self.lengths.items() if name in names or not names]
        padded = sum(len(rows) * int(lengths[rows].max()) for rows in self.batches() for lengths in columns)
        return 1 - sum(int(lengths.sum()) for lengths in columns) / max(1, padded)

    def _gather(self, rows: NDArray[np.int64]) -> Batch:
        """Return this rank's part of a global batch."""
        rank, world_size = rank_and_world_size()
        lengths = {name: of_all[rows] for name, of_all in self.lengths.items()}
        device = self.tensors[next(iter(lengths))].offsets.device
        own = torch.from_numpy(np.ascontiguousarray(rows[rank::world_size])).to(device)
        batch: Batch = {
            name: values.padded(own, self.pad, length=int(lengths[name].max()))
            for name, values in self.tensors.items()
            if name in lengths
        }
        for name in self.tensors.keys() - lengths.keys():
            values = self.tensors[name]
            batch[name] = values.take(own.tolist()) if isinstance(values, Texts) else values[own]
        self.rows_seen += len(rows)
        self.tokens_seen += sum(int(of_rows.sum()) for of_rows in lengths.values())
        if self.predicted:
            batch["global_tokens"] = int(lengths[self.predicted].sum()) - len(rows)
        return batch | {"global_rows": len(rows)}


def train_batches(
    tensors: Mapping[str, Any], options: Mapping[str, Any], *, pad: int, predicted: str | None = None
) -> SequenceLoader:
    """Shuffled training batches, lists of `batches_per_call` of them, as a data module's options say."""
    return SequenceLoader(
        tensors,
        pad=pad,
        batch_tokens=options["batch_tokens"],
        max_rows=options["batch_rows"],
        shuffle=True,
        seed=options["seed"],
        batches_per_call=options["batches_per_call"],
        predicted=predicted,
    )


def eval_batches(
    tensors: Mapping[str, Any], *, pad: int, predicted: str | None = None
) -> SequenceLoader | list[SequenceLoader]:
    """Batches of all rows, the shortest first; nothing where there are none."""
    if not len(tensors["row"]):
        return []
    return SequenceLoader(
        tensors,
        pad=pad,
        batch_tokens=EVAL_BATCH_TOKENS,
        max_rows=EVAL_BATCH_ROWS,
        shuffle=False,
        predicted=predicted,
    )


def on_device(tensors: Mapping[str, Any], trainer: Any) -> dict[str, Any]:
    """The same columns where a trainer computes; on the CPU without one."""
    device = trainer.strategy.root_device if trainer else torch.device("cpu")
    return {name: values.to(device) for name, values in tensors.items()}


def first_rows(sequences: Sequences, num_rows: int, pad: int) -> NDArray[np.int64]:
    """Token ids of the first rows, int64 [B, L]: what an exported graph takes."""
    return sequences.padded(torch.arange(min(num_rows, len(sequences))), pad).numpy()


def _tensor(values: NDArray[np.int32]) -> Tensor:
    """The same memory; that of a file is read-only, of which torch would warn: nobody writes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(values)
