"""Which row is in which batch: a pure function of (seed, epoch, global batch size), on any number of ranks."""

import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch import Tensor

Batch = dict[str, Any]  # columns by name, this rank's rows; and `global_rows`, the rows of all ranks


def epoch_order(num_rows: int, *, seed: int, epoch: int, positives: Tensor | None = None, share: float = 0.0) -> Tensor:
    """Return the row numbers of one epoch in training order, int64 [num_rows].

    With `positives` (row numbers) and a `share` between 0 and 1, about that share of the order is drawn from the
    positives with replacement and the rest from the other rows: balanced sampling, at the same number of rows.
    """
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0]))
    order = torch.randperm(num_rows, generator=generator)
    if positives is None or share <= 0 or len(positives) == 0:
        return order
    take_positive = torch.rand(num_rows, generator=generator) < share
    drawn = positives[torch.randint(len(positives), (num_rows,), generator=generator)]
    is_positive = torch.zeros(num_rows, dtype=torch.bool).index_fill_(0, positives, True)
    negatives = order[~is_positive[order]]
    if len(negatives) == 0:
        return drawn
    fill = negatives[torch.arange(num_rows) % len(negatives)]
    return torch.where(take_positive, drawn, fill)


def rank_and_world_size() -> tuple[int, int]:
    """This process's rank and how many there are; 0 and 1 where it is alone."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


class Loader:
    """What Lightning asks of a loader of ours: its length, the epoch's order, its position.

    Resume: `state_dict` holds the position; the order needs no state. `sampler` is itself, since Lightning calls
    `loader.sampler.set_epoch(epoch)` before each epoch.

    Args:
        num_rows: of all ranks, in an epoch.
        num_batches: global mini-batches in an epoch.
        shuffle: for training.
        seed: of the order.
        batches_per_call: mini-batches of one list; None for single batches.

    Attributes:
        seconds_waiting: time spent in gathering batches since the loader was made.
        rows_seen: rows of all ranks handed out since the loader was made.
    """

    batch_sampler = None

    def __init__(
        self, *, num_rows: int, num_batches: int, shuffle: bool, seed: int, batches_per_call: int | None
    ) -> None:
        self.num_rows, self.num_batches = num_rows, num_batches
        self.shuffle, self.seed, self.batches_per_call = shuffle, seed, batches_per_call
        self.epoch = 0
        self.next_batch = 0
        self.seconds_waiting = 0.0
        self.rows_seen = 0

    @property
    def sampler(self) -> "Loader":
        """Itself: Lightning looks here for `set_epoch`."""
        return self

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

    def calls(self) -> Iterator[tuple[int, int]]:
        """Go on from the position: the first global mini-batch of each call, and the one after its last."""
        # Evaluation always starts at the first row: Lightning's sanity check leaves it after two batches.
        if not self.shuffle or self.next_batch >= self.num_batches:
            self.next_batch = 0
        while self.next_batch < self.num_batches:
            first = self.next_batch
            self.next_batch = min(first + (self.batches_per_call or 1), self.num_batches)
            yield first, self.next_batch


class TensorLoader(Loader):
    """Batches of a table that lives as tensors on one device, cut by index.

    `batch_size` is the global one: rank r of R takes every R-th row of each global batch, so that the ranks together
    see what one process would see, each row once, with nothing padded or dropped.

    A column may be of rows that are yet to be read: then it has `expect(rows)`, which begins with rows that it will be
    asked for, those of the next call while the steps of this one run; and `forget()`, when nobody will ask.

    With `batches_per_call` set, it yields lists of that many consecutive mini-batches, gathered by one indexing
    operation, for a `training_step` that takes several optimizer steps; without, it yields single batches.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        *,
        batch_size: int,
        shuffle: bool,
        seed: int = 0,
        batches_per_call: int | None = None,
        positive_share: float = 0.0,
    ) -> None:
        sizes = {name: len(tensor) for name, tensor in tensors.items()}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"tensors must have one length; got {sizes}")
        # A table without, say, timestamps has a [rows, 0] tensor: it is sliced for free, so it stays in the batch.
        self.tensors = dict(tensors)
        num_rows = next(iter(sizes.values()))
        super().__init__(
            num_rows=num_rows,
            num_batches=-(-num_rows // batch_size),
            shuffle=shuffle,
            seed=seed,
            batches_per_call=batches_per_call,
        )
        self.batch_size = batch_size
        self.positive_share = positive_share
        self.unread: dict[str, Any] = {
            name: column for name, column in self.tensors.items() if hasattr(column, "expect")
        }

    def __iter__(self) -> Iterator[Any]:
        order = self._order()
        try:
            for first, last in self.calls():
                start = time.perf_counter()
                self._expect(order, first, last)
                batches = self._gather(order, first, last)
                self._expect(order, last, min(last + (self.batches_per_call or 1), self.num_batches))
                self.rows_seen += min(last * self.batch_size, self.num_rows) - first * self.batch_size
                self.seconds_waiting += time.perf_counter() - start
                yield batches if self.batches_per_call else batches[0]
        finally:
            for column in self.unread.values():
                column.forget()

    def _order(self) -> Tensor | None:
        if not self.shuffle:
            return None
        positives = self.tensors["target"].nonzero().flatten().cpu() if self.positive_share else None
        order = epoch_order(
            self.num_rows, seed=self.seed, epoch=self.epoch, positives=positives, share=self.positive_share
        )
        return order.to(self._device)

    @property
    def _device(self) -> torch.device | str:
        """Where row numbers are: on the CPU for columns that are yet to be read, so that nobody waits for a GPU."""
        return "cpu" if self.unread else next(iter(self.tensors.values())).device

    def _rows(self, order: Tensor | None, first: int, last: int) -> tuple[Tensor | slice, list[int]]:
        """This rank's rows of the global mini-batches first..last-1, and how many are of each."""
        rank, world_size = rank_and_world_size()
        begin, end = first * self.batch_size, min(last * self.batch_size, self.num_rows)
        if world_size == 1:
            sizes = [self.batch_size] * (last - first - 1) + [end - begin - (last - first - 1) * self.batch_size]
            return (slice(begin, end) if order is None else order[begin:end]), sizes
        window = torch.arange(begin, end, device=self._device) if order is None else order[begin:end]
        parts = [part[rank::world_size] for part in torch.split(window, self.batch_size)]
        return torch.cat(parts), [len(part) for part in parts]

    def _expect(self, order: Tensor | None, first: int, last: int) -> None:
        """Let columns that are yet to be read begin with the global mini-batches first..last-1."""
        if self.unread and first < last:
            numbers = self._coming(order, first, last)
            for column in self.unread.values():
                column.expect(numbers)

    def _coming(self, order: Tensor | None, first: int, last: int) -> Tensor:
        """All rows that this rank will take for the global mini-batches first..last-1."""
        rows, _ = self._rows(order, first, last)
        return torch.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows

    def _taken(self, name: str, rows: Tensor | slice) -> Any:
        column = self.tensors[name]
        if isinstance(rows, slice) or name in self.unread:
            return column[rows]
        return column.index_select(0, rows.to(column.device))

    def _gather(self, order: Tensor | None, first: int, last: int) -> list[Batch]:
        """Return this rank's part of the global mini-batches first..last-1."""
        rows, sizes = self._rows(order, first, last)
        taken = {name: self._taken(name, rows) for name in self.tensors}
        columns = [torch.split(tensor, sizes) for tensor in taken.values()]
        batches: list[Batch] = [dict(zip(taken, values, strict=True)) for values in zip(*columns, strict=True)]
        for number, batch in enumerate(batches, start=first):
            batch["global_rows"] = min(self.batch_size, self.num_rows - number * self.batch_size)
        return batches
