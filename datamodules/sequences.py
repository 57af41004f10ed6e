"""Texts as token ids: ragged in memory, padded batch by batch, batches filled by a budget of tokens.

N rows, B rows of one batch, L the longest of them in tokens.
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

from datamodules import loading
from datamodules.loading import Batch, epoch_order

EXACT = 24  # up to this length, every length is a bucket of its own
STEP = 1.04  # from there on, a bucket is so much longer than the one before it


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


def bucket_lengths(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Lengths rounded up to a fixed grid: every length up to 24, then steps of 4 %."""
    longest = int(lengths.max(initial=1))
    grid = list(range(EXACT + 1))
    while grid[-1] < longest:
        grid.append(max(grid[-1] + 1, int(grid[-1] * STEP)))
    edges = np.array(grid, np.int64)
    return edges[np.searchsorted(edges, lengths)]


def cut(ascending: NDArray[np.int64], batch_tokens: int, max_rows: int) -> NDArray[np.int64]:
    """Where batches begin, and the end, so that rows * longest <= batch_tokens; a batch has at least one row.

    ascending: lengths of the rows, the shortest first.
    """
    begins = [0]
    while begins[-1] < len(ascending):
        first = begins[-1]
        most = min(max(1, batch_tokens // max(1, int(ascending[first]))), max_rows)
        window = ascending[first : first + most]
        begins.append(first + max(1, int((window * np.arange(1, len(window) + 1) <= batch_tokens).sum())))
    return np.array(begins, np.int64)


class SequenceLoader:
    """Batches of about `batch_tokens` tokens each, of rows that are nearly equally long.

    Order, a pure function of (seed, epoch, batch_tokens): an epoch's permutation, sorted stably by rounded length, is
    cut into batches, and these are shuffled. Where the cuts are depends on the lengths alone: every epoch has the same
    number of batches. Without `shuffle` the rows come by rounded length, each once; `row` tells which they are.

    `batch_tokens` is the global one, and counts padding: rank r of R takes every R-th row of each global batch, and all
    ranks pad to the longest row of the global batch. The rest is as in `loading.TensorLoader`.

    Args:
        tensors: columns of N rows; `tokens` are Sequences.
        pad: token id of padding.
        batch_tokens: rows of a global batch times their longest.
        max_rows: rows of a global batch, however short they are.
        shuffle: for training.
        seed: of the order.
        batches_per_call: mini-batches of one list; None for single batches.

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
    ) -> None:
        sizes = {name: len(values) for name, values in tensors.items()}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"columns must have one length; got {sizes}")
        self.tensors, self.pad = dict(tensors), pad
        self.num_rows = sizes["tokens"]
        self.batch_tokens, self.max_rows = batch_tokens, max_rows
        self.shuffle, self.seed, self.batches_per_call = shuffle, seed, batches_per_call
        self.lengths: NDArray[np.int64] = self.tensors["tokens"].lengths.cpu().numpy()
        self.buckets = bucket_lengths(self.lengths)
        self.begins = cut(np.sort(self.buckets), batch_tokens, max_rows)
        self.epoch = 0
        self.next_batch = 0
        self.seconds_waiting = 0.0
        self.rows_seen = 0
        self.tokens_seen = 0

    batch_sampler = None

    @property
    def sampler(self) -> "SequenceLoader":
        """Itself: Lightning looks here for `set_epoch`."""
        return self

    @property
    def num_batches(self) -> int:
        """Number of global mini-batches in an epoch, the same in each."""
        return len(self.begins) - 1

    def __len__(self) -> int:
        return -(-self.num_batches // (self.batches_per_call or 1))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration follows."""
        if epoch != self.epoch:
            self.epoch, self.next_batch = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        """Return the position: epoch and number of global mini-batches already handed out."""
        return {"epoch": self.epoch, "next_batch": self.next_batch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the position of `state_dict`, on any number of ranks."""
        self.epoch, self.next_batch = int(state["epoch"]), int(state["next_batch"])

    def __iter__(self) -> Iterator[Any]:
        start = time.perf_counter()
        batches = self.batches()
        # Evaluation always starts at the first row: Lightning's sanity check leaves it after two batches.
        if not self.shuffle or self.next_batch >= self.num_batches:
            self.next_batch = 0
        while self.next_batch < self.num_batches:
            last = min(self.next_batch + (self.batches_per_call or 1), self.num_batches)
            call = [self._gather(rows) for rows in batches[self.next_batch : last]]
            self.next_batch = last
            self.seconds_waiting += time.perf_counter() - start
            yield call if self.batches_per_call else call[0]
            start = time.perf_counter()

    def batches(self) -> list[NDArray[np.int64]]:
        """Row numbers of this epoch's global batches, in their order."""
        order = epoch_order(self.num_rows, seed=self.seed, epoch=self.epoch).numpy() if self.shuffle else None
        keys = self.buckets if order is None else self.buckets[order]
        by_length = np.argsort(keys, kind="stable")
        rows = np.split(by_length if order is None else order[by_length], self.begins[1:-1])
        if order is None or not self.num_rows:
            return rows if self.num_rows else []
        places = np.random.default_rng((self.seed, self.epoch)).permutation(self.num_batches)
        return [rows[place] for place in places]

    def padding(self) -> float:
        """Share of an epoch's ids that is padding."""
        padded = sum(len(rows) * int(self.lengths[rows].max()) for rows in self.batches())
        return 1 - int(self.lengths.sum()) / max(1, padded)

    def _gather(self, rows: NDArray[np.int64]) -> Batch:
        """Return this rank's part of a global batch."""
        rank, world_size = loading._rank_and_world_size()
        sequences: Sequences = self.tensors["tokens"]
        lengths = self.lengths[rows]
        own = torch.from_numpy(np.ascontiguousarray(rows[rank::world_size])).to(sequences.offsets.device)
        batch: Batch = {"tokens": sequences.padded(own, self.pad, length=int(lengths.max()))}
        batch |= {name: values[own] for name, values in self.tensors.items() if name != "tokens"}
        self.rows_seen += len(rows)
        self.tokens_seen += int(lengths.sum())
        return batch | {"global_rows": len(rows)}


def _tensor(values: NDArray[np.int32]) -> Tensor:
    """The same memory; that of a file is read-only, of which torch would warn: nobody writes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(values)
