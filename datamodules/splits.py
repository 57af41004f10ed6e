"""Which rows train, which validate and which test: as a column or files say, else by a hash of the text."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from datamodules.columns import Column, texts

NAMES = ("train", "val", "test")
USUAL = {"train": ["train", "training"], "val": ["val", "valid", "validation", "dev"], "test": ["test"]}
Value = str | int | bool
Rows = NDArray[np.int64]


def parts_by_column(
    column: Column, name: str, splits: Mapping[str, Sequence[Value] | None] | None, notes: list[str]
) -> dict[str, Rows]:
    """Rows of each split that a column names; `splits` maps splits to its values, None for the usual ones.

    Raises ValueError naming the values that there are if one is asked for in vain, or train has none.
    """
    values = texts(column)
    counts = {pair["values"]: pair["counts"] for pair in pc.value_counts(values).to_pylist()}
    values_there = [f"{'nothing' if value is None else repr(value)} ({count:,})" for value, count in counts.items()]
    there = f"column {name!r} has {', '.join(values_there[:20])}"
    how = "give data.splits={train: [VALUE, ..], val: [..], test: [..]}; a split without values is taken out of train"
    if splits is None:
        known = {alias: split for split, aliases in USUAL.items() for alias in aliases}
        meant = {value: known.get(str(value).lower()) for value in counts}
        if None in meant.values() or "train" not in meant.values():
            raise ValueError(f"{there}, which do not all name a split, train among them: {how}")
    else:
        if unknown := set(splits) - set(NAMES):
            raise ValueError(f"data.splits must map train, val and test to values, got {sorted(unknown)[0]!r}")
        asked = {str(value): split for split, chosen in splits.items() for value in chosen or []}
        if strange := [value for value in asked if value not in counts]:
            raise ValueError(f"data.splits.{asked[strange[0]]} has {strange[0]!r}, and {there}")
        if "train" not in asked.values():
            raise ValueError(f"data.splits must name the training rows; {there}: {how}")
        meant = {value: asked.get(str(value)) for value in counts}
        unnamed = {value: value or "nothing" for value, split in meant.items() if split is None}
        notes += [
            f"{counts[value]:,} rows with {name}={told} are in no split: left out" for value, told in unnamed.items()
        ]
    own = {split: [value for value, of in meant.items() if of == split] for split in NAMES}
    return {
        split: np.flatnonzero(np.asarray(pc.is_in(values, pa.array(chosen, pa.large_string()))))
        for split, chosen in own.items()
        if chosen
    }


def parts_by_folders(where: str, names: Iterable[str]) -> dict[str, str]:
    """The folder of each split, train first; nothing where no training folder is among these.

    Raises ValueError where two name the same split, or there are others beside: nobody can tell what those are for.
    """
    known = {alias: split for split, aliases in USUAL.items() for alias in aliases}
    meant = {name: known.get(name.lower()) for name in sorted(names)}
    if "train" not in meant.values():
        return {}
    if others := [name for name, split in meant.items() if split is None]:
        own = ", ".join(name for name, split in meant.items() if split)
        raise ValueError(f"{where}: {own} name splits, and {others[0]} beside them none: rename it or move it away")
    if len(set(meant.values())) < len(meant):
        raise ValueError(f"{where}: two of the folders {', '.join(meant)} name the same split: rename one")
    folders = {split: name for name, split in meant.items()}
    return {split: folders[split] for split in USUAL if split in folders}


def require_training_share(options: Mapping[str, Any]) -> None:
    """Raise ValueError if val_share and test_share leave nothing to train on."""
    if options["val_share"] + options["test_share"] >= 1:
        raise ValueError(
            "val_share + test_share must be below 1 to leave training rows, got "
            f"{options['val_share']} + {options['test_share']}"
        )


def require_training_rows(num_given: int, num_left: int, what: str, notes: Sequence[str]) -> None:
    """Raise ValueError if no row trains, saying why: `num_given` rows were given to train and to be split.

    notes: what was told of the data; the last line may be the reason.
    """
    if num_left:
        return
    if num_given:
        raise ValueError(
            f"no row is left to train on: all {num_given:,} with {what} fell to validation and test, for rows are too "
            "few, or their texts near-duplicates, which stay together; give data.val_share=0 data.test_share=0, or more"
        )
    told = f" ({notes[-1]})" if notes else ""
    raise ValueError(f"there are no training rows with {what}{told}")


def parts_by_hash(hashes: Mapping[str, NDArray[np.uint64]], options: Mapping[str, Any]) -> dict[str, tuple[str, Rows]]:
    """For each split, the given one that its rows are taken from, and which of them.

    A split that is given is all of itself, but for the training rows that the others need; see `shares_of`.
    """
    shares = {name: options[f"{name}_share"] for name in ("val", "test") if name not in hashes}
    taken = shares_of(hashes["train"], shares)
    given = {name: (name, np.arange(len(hashes[name]))) for name in hashes if name != "train"}
    return {name: given.get(name, ("train", taken[name])) for name in NAMES}


def shares_of(hashes: NDArray[np.uint64], shares: Mapping[str, float]) -> dict[str, Rows]:
    """Rows of each split by their hash: equal hashes to one split, whatever other rows there are.

    shares: of the splits other than train, which has the rest.
    """
    place = hashes.astype(np.float64) / 2.0**64
    bounds = np.cumsum([shares.get("test", 0.0), shares.get("val", 0.0)])
    part = np.searchsorted(bounds, place, side="right")
    return {name: np.flatnonzero(part == number) for number, name in enumerate(("test", "val", "train"))}
