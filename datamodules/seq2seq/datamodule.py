"""What all pairs of texts share (summaries, translations): rows are split, tokenized once, and batched by tokens.

N rows, B rows of one batch, S and T the tokens of their longest source and target.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

import numpy as np
import pyarrow as pa
import torch
from annotated_types import Ge, Gt, Le, Lt
from babel import localedata
from numpy.typing import NDArray
from pytorch_lightning import LightningDataModule
from torch import Tensor

from datamodules.columns import Column
from datamodules.schema import Schema, require_columns
from datamodules.seq2seq.duplicates import groups
from datamodules.sequences import SequenceLoader, Sequences, eval_batches, first_rows, on_device, train_batches
from datamodules.sources import iter_batches, read_table
from datamodules.splits import NAMES, parts_by_hash, require_training_rows, require_training_share
from datamodules.texts import Texts, hashes, naming, texts_of
from datamodules.tokenized import How, Tokenized, target_of, tokenized
from datamodules.tokenizer import cut_notes, encode, tokenizer_of

Count = Annotated[int, Gt(0)]
Share = Annotated[float, Ge(0), Lt(1)]

PREDICT_BATCH_ROWS = 1_024


class Options(TypedDict):
    """What all pairs of texts have in common.

    Attributes:
        val_share: share of the training rows that validate, where the data name no validation rows.
        test_share: share of the training rows that test, where the data name no test rows.
        tokenizer: bpe or unigram, trained on sources and targets of the training rows; or a tokenizer.json's path.
        vocab_size: token ids of a trained tokenizer, the 256 bytes among them.
        lowercase: whether a trained tokenizer ignores case: then what a model writes is lower-case as well.
        max_source_length: tokens of a source, its </s> among them; what is beyond is cut off before it.
        max_target_length: tokens of a target, its <s> and </s> among them; likewise.
        batch_tokens: tokens per optimizer step over all processes: rows times (longest source + longest target).
        batch_rows: most rows of such a batch.
        batches_per_call: mini-batches handed to one training_step.
        seed: of the order of training rows.
    """

    val_share: Share
    test_share: Share
    tokenizer: str
    vocab_size: Annotated[int, Ge(300), Le(1_000_000)]
    lowercase: bool
    max_source_length: Annotated[int, Ge(3)]
    max_target_length: Annotated[int, Ge(3)]
    batch_tokens: Count
    batch_rows: Count
    batches_per_call: Count
    seed: Annotated[int, Ge(0)]


@dataclass(frozen=True)
class Pairs:
    """Rows with a source and a target, in the order of their table."""

    source: Column
    target: Column

    def take(self, places: NDArray[Any]) -> "Pairs":
        """The rows at these places."""
        return Pairs(self.source.take(pa.array(places)), self.target.take(pa.array(places)))


class Seq2SeqDataModule(LightningDataModule):
    """Splits, tokenizes and batches pairs; `Seq2SeqTable` and the others say where the rows come from.

    After `setup`: `schema`; `tensors[split]` with `source` (Sequences of pieces and </s>), `target` (Sequences of <s>,
    pieces and </s>), `source_text` and `reference`, their texts, and `row`, the number of the row in the split;
    `texts[split]`, `source` and `target` as they were;
    `fingerprint` of the texts; `notes` for the user; one-line `summary`. `load_other` and `iter_other` read other data
    by a finished run's schema. Batches hold `source` int64 [B, S], `target` int64 [B, T], `row`, and of all ranks
    `global_rows` and `global_tokens`, the target tokens that are predicted.

    Args:
        source: columns of the table that make the source, joined by a newline.
        target: column of the table with the target.
        options: see `Options`.
    """

    name = "pairs"
    digits_differ = False  # whether texts that differ in digits alone may be in different splits

    def __init__(self, source: list[str], *, target: str, options: Options) -> None:
        super().__init__()
        require_training_share(options)
        if not source:
            raise ValueError("source must name a column; it is an empty list")
        if target in source:
            raise ValueError(f"target must be another column than the source; both are {target!r}")
        self.raw: dict[str, Any] = {"source": source, "target": target}
        self.languages: dict[str, str | None] = {"source": language_of(source[0]), "target": language_of(target)}
        self.options = options
        self.schema: Schema = {}
        self.tensors: dict[str, dict[str, Any]] = {}
        self.texts: dict[str, dict[str, Texts]] = {}
        self.fingerprint, self.summary = "", ""
        self.notes: list[str] = []
        self.unseen: Counter[str] = Counter()  # stays empty: any text is pieces or bytes
        self._pad = 0

    def read(self) -> dict[str, tuple[str, pa.Table]]:
        """For each split that the data name, train first, where it comes from and its table as it is stored."""
        raise NotImplementedError

    def read_other(self, uri: str) -> pa.Table:
        """Another table with sources and targets."""
        return read_table(uri, as_text=True)

    def iter_tables(self, uri: str) -> Iterator[pa.RecordBatch]:
        """Another table, with sources and perhaps with targets, piece by piece."""
        return iter_batches(uri, batch_rows=PREDICT_BATCH_ROWS, as_text=True)

    def setup(self, stage: str | None = None) -> None:
        """Read, split and tokenize; a second call does nothing."""
        if self.tensors:
            return
        stored = self.read()
        given = {name: self._pairs(*own, self.raw) for name, own in stored.items()}
        rows = self._split(given)
        with naming(stored["train"][0]):
            counts = len(given["train"].source), len(rows["train"].source)
            require_training_rows(*counts, "a source and a target", self.notes)
        sources = {split: own.source for split, own in rows.items()}
        made = tokenized(sources, self._how(), {split: own.target for split, own in rows.items()})
        for split, own in rows.items():
            self.texts[split] = {"source": Texts(own.source), "target": Texts(own.target)}
            self.tensors[split] = _tensors(made.tokens[split], made.tokens[target_of(split)], self.texts[split])
        self.fingerprint = made.fingerprint_with({})
        self.schema = self._schema(made.tokenizer)
        self._pad = self.schema["tokenizer"]["pad_id"]
        self._describe(made)

    def load_other(self, uri: str, schema: Schema) -> dict[str, Any]:
        """All pairs of another table by a finished run's schema; keys as in `tensors[split]`.

        `texts["test"]` are theirs from then on.
        """
        rows = self._pairs(uri, self.read_other(uri), schema["raw"])
        tokenizer, start = tokenizer_of(schema), schema["tokenizer"]["cls_id"]
        source, num_cut = encode(tokenizer, rows.source, schema["max_source_length"])
        target, num_targets_cut = encode(tokenizer, rows.target, schema["max_target_length"], start)
        self.notes += cut_notes("sources", {uri: num_cut}, schema["max_source_length"])
        self.notes += cut_notes("targets", {uri: num_targets_cut}, schema["max_target_length"])
        self.texts["test"] = {"source": Texts(rows.source), "target": Texts(rows.target)}
        self._pad = schema["tokenizer"]["pad_id"]
        return _tensors(source, target, self.texts["test"])

    def iter_other(self, uri: str, schema: Schema) -> Iterator[tuple[pa.RecordBatch, dict[str, Tensor]]]:
        """Batches of another table, in its own order, targets or none, each with its sources, int64 [B, S].

        A row without a source has the empty text. Afterwards, `notes` tell of such rows and of cut ones.
        """
        tokenizer, columns = tokenizer_of(schema), schema["raw"]["source"]
        row, num_empty, num_cut = 1, 0, 0
        for batch in self.iter_tables(uri):
            with naming(uri):
                require_columns(batch.schema, columns)
            texts = texts_of(batch, columns, uri, first_row=row)
            ids, num_longer = encode(tokenizer, texts, schema["max_source_length"])
            row, num_empty, num_cut = row + batch.num_rows, num_empty + texts.null_count, num_cut + num_longer
            yield batch, {"source": Sequences.of(ids).padded(torch.arange(len(ids)), schema["tokenizer"]["pad_id"])}
        if num_empty:
            self.notes.append(f"{num_empty:,} rows of {uri} without a source are read as the empty text")
        self.notes += cut_notes("sources", {uri: num_cut}, schema["max_source_length"])

    def raw_inputs(self, split: str, num_rows: int) -> dict[str, NDArray[Any]]:
        """What an exported graph takes of the first rows of a split, after `setup`: source int64 [B, S]."""
        return {"source": first_rows(self.tensors[split]["source"], num_rows, self._pad)}

    def encode_raw(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
        """The model's inputs of what an exported graph takes."""
        return {name: torch.from_numpy(np.require(array, requirements=["C", "W"])) for name, array in arrays.items()}

    def train_dataloader(self) -> SequenceLoader:
        """Shuffled training batches, lists of `batches_per_call` of them."""
        tensors = {name: self.tensors["train"][name] for name in ("source", "target", "row")}
        tensors = on_device(tensors, self.trainer)
        return train_batches(tensors, self.options, pad=self._pad, predicted="target")

    def val_dataloader(self) -> SequenceLoader | list[SequenceLoader]:
        """Validation batches, the shortest texts first; nothing where there are no validation rows."""
        return self.eval_dataloader(self.tensors["val"])

    def test_dataloader(self) -> SequenceLoader | list[SequenceLoader]:
        """Test batches, the shortest texts first; nothing where there are no test rows."""
        return self.eval_dataloader(self.tensors["test"])

    def eval_dataloader(self, tensors: dict[str, Any]) -> SequenceLoader | list[SequenceLoader]:
        """Batches of rows such as `load_other` gives, the shortest texts first; `row` tells which they are."""
        return eval_batches(on_device(tensors, self.trainer), pad=self._pad, predicted="target")

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Return the batch as it is: the loaders' tensors live on the device."""
        return batch

    def _pairs(self, uri: str, table: pa.Table, raw: Mapping[str, Any]) -> Pairs:
        """The rows of a table that have a source and a target."""
        with naming(uri):
            require_columns(table.schema, [*raw["source"], raw["target"]])
        source, target = texts_of(table, raw["source"], uri), texts_of(table, [raw["target"]], uri)
        is_pair = np.asarray(source.is_valid()) & np.asarray(target.is_valid())
        if not is_pair.all():
            self.notes.append(f"{int((~is_pair).sum()):,} rows of {uri} without a source or a target are left out")
        return Pairs(source, target).take(np.flatnonzero(is_pair))

    def _split(self, given: dict[str, Pairs]) -> dict[str, Pairs]:
        """The splits that the data name, and the others taken out of the training rows, groups of duplicates whole."""
        sources = {name: hashes(rows.source, digits=self.digits_differ) for name, rows in given.items()}
        targets = {name: hashes(rows.target, digits=self.digits_differ) for name, rows in given.items()}
        hashed = sources | {"train": groups(sources["train"], targets["train"])}
        parts = parts_by_hash(hashed, self.options)
        training = parts["train"][1]
        for name in (name for name in NAMES[1:] if name in given):
            is_known = np.isin(sources[name], sources["train"][training])
            if num_known := int(is_known.sum()):
                self.notes.append(f"leakage: {num_known:,} of the {len(is_known):,} {name} sources train, too")
        return {name: given[origin].take(places) for name, (origin, places) in parts.items()}

    def _how(self) -> How:
        options = self.options
        return How(
            tokenizer=options["tokenizer"],
            vocab_size=options["vocab_size"],
            lowercase=options["lowercase"],
            max_length=options["max_source_length"],
            target_length=options["max_target_length"],
        )

    def _schema(self, tokenizer: dict[str, Any]) -> Schema:
        lengths = {side: self.tensors["train"][side].lengths for side in ("source", "target")}
        return {
            "tokenizer": tokenizer,
            "max_source_length": self.options["max_source_length"],
            "max_target_length": self.options["max_target_length"],
            "num_tokens": {
                side: {"all": int(own.sum()), "median": int(own.median()), "most": int(own.max())}
                for side, own in lengths.items()
            },
            "raw": self.raw,
            "target": {"name": self.raw["target"]},
            "languages": self.languages,
        }

    def _describe(self, made: Tokenized) -> None:
        sizes = [len(self.tensors[split]["row"]) for split in NAMES]
        tokens, schema = self.schema["num_tokens"], self.schema
        self.summary = (
            f"{self.name}: {sum(sizes):,} pairs, {' / '.join(f'{size:,}' for size in sizes)}, "
            f"{tokens['source']['all'] / sizes[0]:.0f} + {tokens['target']['all'] / sizes[0]:.0f} tokens each "
            f"of {schema['tokenizer']['vocab_size']:,} ({self.options['tokenizer']})"
        )
        self.notes += cut_notes("sources", {split: made.num_cut[split] for split in NAMES}, schema["max_source_length"])
        targets = {split: made.num_cut[target_of(split)] for split in NAMES}
        self.notes += cut_notes("targets", targets, schema["max_target_length"])
        self.notes += [f"there are no {split} rows" for split, size in zip(NAMES, sizes, strict=True) if not size]


def language_of(name: str) -> str | None:
    """The language that a column or a file extension is named after, as in de or pt_BR; None for other names."""
    return name if localedata.exists(name) and name != "root" else None


def _tensors(source: pa.Array, target: pa.Array, texts: Mapping[str, Texts]) -> dict[str, Any]:
    tokens = {"source": Sequences.of(source), "target": Sequences.of(target), "row": torch.arange(len(source))}
    return tokens | {"source_text": texts["source"], "reference": texts["target"]}
