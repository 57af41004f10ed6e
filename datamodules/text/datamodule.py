"""What all text classification data share: rows are split, tokenized once into a cached file, and batched by tokens."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

import numpy as np
import pyarrow as pa
import torch
from annotated_types import Ge, Gt, Le, Lt
from numpy.typing import NDArray
from pytorch_lightning import LightningDataModule
from torch import Tensor

from datamodules import labels as label
from datamodules.columns import Column
from datamodules.schema import Schema, require_columns
from datamodules.sequences import SequenceLoader, Sequences, eval_batches, first_rows, on_device, train_batches
from datamodules.sources import iter_batches, read_table
from datamodules.splits import NAMES, parts_by_hash, require_training_rows, require_training_share
from datamodules.texts import Texts, hashes, naming, texts_of
from datamodules.tokenized import How, tokenized
from datamodules.tokenizer import cut_notes, encode, tokenizer_of

Count = Annotated[int, Gt(0)]
Share = Annotated[float, Ge(0), Lt(1)]

PREDICT_BATCH_ROWS = 4_096


class Options(TypedDict):
    """What all text classification data have in common.

    Attributes:
        val_share: share of the training rows that validate, where the data name no validation rows.
        test_share: share of the training rows that test, where the data name no test rows.
        tokenizer: bpe or unigram, trained on the training rows; or the path of a tokenizer.json.
        vocab_size: token ids of a trained tokenizer, the 256 bytes among them.
        lowercase: whether a trained tokenizer ignores case.
        max_length: tokens of a text; what is beyond is cut off.
        batch_tokens: tokens per optimizer step, padding included, over all processes together.
        batch_rows: most rows of such a batch.
        batches_per_call: mini-batches handed to one training_step.
        class_weights: of the loss: none, balanced, or a mapping of classes to weights.
        seed: of the order of training rows.
    """

    val_share: Share
    test_share: Share
    tokenizer: str
    vocab_size: Annotated[int, Ge(300), Le(1_000_000)]
    lowercase: bool
    max_length: Annotated[int, Ge(2)]
    batch_tokens: Count
    batch_rows: Count
    batches_per_call: Count
    class_weights: label.Weights
    seed: Annotated[int, Ge(0)]


@dataclass(frozen=True)
class Rows:
    """Rows with a text and labels, in the order of their table."""

    texts: Column
    labels: Column

    def take(self, places: NDArray[Any]) -> "Rows":
        """The rows at these places, or where a mask is true."""
        chosen = np.flatnonzero(places) if places.dtype == bool else places
        return Rows(self.texts.take(pa.array(chosen)), self.labels.take(pa.array(chosen)))


class TextDataModule(LightningDataModule):
    """Splits, tokenizes and batches texts; `TextTable` and the others say where the rows come from.

    After `setup`: `schema`; `tensors[split]` with `tokens` (Sequences), `target` (int64 [N], for several labels a row
    float32 [N, C]) and `row`, the number of the row in the split; `texts[split]` as they were; `fingerprint` of the
    texts and labels; `notes` for the user; one-line `summary`. `load_other` and `iter_other` read other data by a
    finished run's schema.

    Args:
        columns: of the table that make the text, joined by a newline.
        label: column of the table with the label, or with a list of them.
        label_separator: what stands between several labels of a row; None where there is one, or a list column.
        options: see `Options`.
    """

    name = "texts"

    def __init__(self, columns: list[str], *, label: str, label_separator: str | None, options: Options) -> None:
        super().__init__()
        require_training_share(options)
        if not columns:
            raise ValueError("text must name a column; it is an empty list")
        if label in columns:
            raise ValueError(f"label must be another column than the text; both are {label!r}")
        self.raw: dict[str, Any] = {"text": columns, "label": label, "label_separator": label_separator}
        self.options = options
        self.schema: Schema = {}
        self.tensors: dict[str, dict[str, Any]] = {}
        self.texts: dict[str, Texts] = {}
        self.fingerprint, self.summary = "", ""
        self.notes: list[str] = []
        self.unseen: Counter[str] = Counter()
        self._pad = 0

    def read(self) -> dict[str, tuple[str, pa.Table]]:
        """For each split that the data name, train first, where it comes from and its table as it is stored."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        """Read, split and tokenize; a second call does nothing."""
        if self.tensors:
            return
        stored = self.read()
        uri, given = stored["train"][0], {name: self._rows(*own, self.raw) for name, own in stored.items()}
        rows = self._split(given)
        with naming(uri):
            require_training_rows(len(given["train"].texts), len(rows["train"].texts), "a text and a label", self.notes)
            classes = label.classes_of(rows["train"].labels, self.raw["label"])
        rows = {split: self._known(own, classes, f"{split} rows") for split, own in rows.items()}
        made = tokenized({split: own.texts for split, own in rows.items()}, self._how())
        for split, own in rows.items():
            self.texts[split] = Texts(own.texts)
            self.tensors[split] = self._tensors(made.tokens[split], own, classes)
        self.fingerprint = made.fingerprint_with({split: own.labels for split, own in rows.items()})
        self.schema = self._schema(classes, made.tokenizer)
        self._pad = self.schema["tokenizer"]["pad_id"]
        self._describe(made.num_cut)

    def load_other(self, uri: str, schema: Schema) -> dict[str, Any]:
        """All labelled rows of another table by a finished run's schema; keys as in `tensors[split]`.

        `texts["test"]` are theirs from then on.
        """
        rows = self._rows(uri, read_table(uri, as_text=True), schema["raw"])
        rows = self._known(rows, schema["classes"], f"rows of {uri}")
        if label.is_multiple(rows.labels) != schema["multi_label"]:
            kind = "several labels" if schema["multi_label"] else "one label"
            raise ValueError(f"{uri}: column {schema['raw']['label']!r} must have {kind} a row, as in training")
        tokens, num_cut = encode(tokenizer_of(schema), rows.texts, schema["max_length"])
        self.notes += cut_notes("texts", {uri: num_cut}, schema["max_length"])
        self.texts["test"], self._pad = Texts(rows.texts), schema["tokenizer"]["pad_id"]
        return self._tensors(tokens, rows, schema["classes"])

    def iter_other(self, uri: str, schema: Schema) -> Iterator[tuple[pa.RecordBatch, dict[str, Tensor]]]:
        """Batches of another table, in its own order and labelled or not, each with its tokens, int64 [B, L].

        A row without a text is classified as the empty text. Afterwards, `notes` tell of such rows and of cut ones.
        """
        tokenizer, columns = tokenizer_of(schema), schema["raw"]["text"]
        row, num_empty, num_cut = 1, 0, 0
        for batch in iter_batches(uri, batch_rows=PREDICT_BATCH_ROWS, as_text=True):
            with naming(uri):
                require_columns(batch.schema, columns)
            texts = texts_of(batch, columns, uri, first_row=row)
            ids, num_longer = encode(tokenizer, texts, schema["max_length"])
            row, num_empty, num_cut = row + batch.num_rows, num_empty + texts.null_count, num_cut + num_longer
            yield batch, {"tokens": Sequences.of(ids).padded(torch.arange(len(ids)), schema["tokenizer"]["pad_id"])}
        if num_empty:
            self.notes.append(f"{num_empty:,} rows of {uri} without a text are classified as the empty text")
        self.notes += cut_notes("texts", {uri: num_cut}, schema["max_length"])

    def raw_inputs(self, split: str, num_rows: int) -> dict[str, NDArray[Any]]:
        """What an exported graph takes of the first rows of a split, after `setup`: tokens int64 [B, L]."""
        return {"tokens": first_rows(self.tensors[split]["tokens"], num_rows, self._pad)}

    def encode_raw(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
        """The model's inputs of what an exported graph takes."""
        return {name: torch.from_numpy(np.require(array, requirements=["C", "W"])) for name, array in arrays.items()}

    def train_dataloader(self) -> SequenceLoader:
        """Shuffled training batches, lists of `batches_per_call` of them."""
        return train_batches(on_device(self.tensors["train"], self.trainer), self.options, pad=self._pad)

    def val_dataloader(self) -> SequenceLoader | list[SequenceLoader]:
        """Validation batches, the shortest texts first; nothing where there are no validation rows."""
        return self.eval_dataloader(self.tensors["val"])

    def test_dataloader(self) -> SequenceLoader | list[SequenceLoader]:
        """Test batches, the shortest texts first; nothing where there are no test rows."""
        return self.eval_dataloader(self.tensors["test"])

    def eval_dataloader(self, tensors: dict[str, Any]) -> SequenceLoader | list[SequenceLoader]:
        """Batches of rows such as `load_other` gives, the shortest texts first; `row` tells which they are."""
        return eval_batches(on_device(tensors, self.trainer), pad=self._pad)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Return the batch as it is: the loaders' tensors live on the device."""
        return batch

    def _rows(self, uri: str, table: pa.Table, raw: Mapping[str, Any]) -> Rows:
        """The rows of a table that have a text and a label."""
        with naming(uri):
            require_columns(table.schema, [*raw["text"], raw["label"]])
        texts = texts_of(table, raw["text"], uri)
        with naming(f"{uri}, column {raw['label']!r}"):
            found = label.labels_of(table[raw["label"]], raw["label_separator"])
        has_text, has_label = np.asarray(texts.is_valid()), np.asarray(found.is_valid())
        if not has_text.all():
            self.notes.append(f"{int((~has_text).sum()):,} rows of {uri} without a text are left out")
        if not has_label[has_text].all():
            self.notes.append(f"{int((~has_label[has_text]).sum()):,} rows of {uri} without a label are left out")
        return Rows(texts, found).take(has_text & has_label)

    def _split(self, given: dict[str, Rows]) -> dict[str, Rows]:
        """The splits that the data name, and the others taken out of the training rows by a hash of their texts."""
        folded = {name: hashes(rows.texts) for name, rows in given.items()}
        parts = parts_by_hash(folded, self.options)
        training = folded["train"][parts["train"][1]]
        for name in (name for name in NAMES[1:] if name in given):
            if num_known := int(np.isin(folded[name], training).sum()):
                self.notes.append(f"leakage: {num_known:,} of the {len(folded[name]):,} {name} texts train, too")
        return {name: given[origin].take(places) for name, (origin, places) in parts.items()}

    def _known(self, rows: Rows, classes: list[str], what: str) -> Rows:
        is_known, strange = label.known(rows.labels, classes)
        if strange:
            some = ", ".join(map(repr, strange[:5])) + (", ..." if len(strange) > 5 else "")
            self.notes.append(
                f"{int((~is_known).sum()):,} {what} have a label that training has not ({some}): left out"
            )
        return rows.take(is_known) if strange else rows

    def _how(self) -> How:
        options = self.options
        return How(options["tokenizer"], options["vocab_size"], options["lowercase"], options["max_length"])

    def _tensors(self, tokens: pa.Array, rows: Rows, classes: list[str]) -> dict[str, Any]:
        target = label.encode(rows.labels, classes)
        return {"tokens": Sequences.of(tokens), "target": target, "row": torch.arange(len(target))}

    def _schema(self, classes: list[str], tokenizer: dict[str, Any]) -> Schema:
        target, lengths = self.tensors["train"]["target"], self.tensors["train"]["tokens"].lengths
        counts = label.counts_of(target, len(classes))
        return {
            "classes": classes,
            "counts": counts,
            "num_rows": len(target),
            "multi_label": target.ndim == 2,
            "class_weights": label.weights_of(self.options["class_weights"], classes, counts, len(target)),
            "tokenizer": tokenizer,
            "max_length": self.options["max_length"],
            "num_tokens": {
                "all": int(lengths.sum()),
                "median": int(lengths.median()),
                "most": int(lengths.max()),
            },
            "raw": self.raw,
            "target": {"name": self.raw["label"]},
        }

    def _describe(self, num_cut: Mapping[str, int]) -> None:
        sizes = [len(self.tensors[split]["target"]) for split in NAMES]
        tokens, schema = self.schema["num_tokens"], self.schema
        kind = "labels, any number a row" if schema["multi_label"] else "classes"
        self.summary = (
            f"{self.name}: {sum(sizes):,} texts, {' / '.join(f'{size:,}' for size in sizes)}, "
            f"{len(schema['classes']):,} {kind}, {tokens['all'] / sizes[0]:.0f} tokens each "
            f"of {schema['tokenizer']['vocab_size']:,} ({self.options['tokenizer']})"
        )
        self.notes += cut_notes("texts", num_cut, schema["max_length"])
        few = [name for name, count in zip(schema["classes"], schema["counts"], strict=True) if count < 5]
        if few:
            self.notes.append(f"fewer than 5 training rows: {', '.join(few[:10])}{', ...' if len(few) > 10 else ''}")
        for split, size in zip(NAMES, sizes, strict=True):
            if not size:
                self.notes.append(f"there are no {split} rows")
