"""What all image classification data share: pictures are decoded once or always, split, and batched by index."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pytorch_lightning import LightningDataModule
from torch import Tensor

from datamodules import labels as label
from datamodules.augment import Augmentation, AugmentedLoader
from datamodules.columns import Column
from datamodules.images import Size
from datamodules.loading import TensorLoader
from datamodules.pictures import (
    Count,
    PictureOptions,
    decoded_alike,
    encoded_raw,
    note_decoded,
    size_of,
    split_by_pixels,
    taken,
    tensor_of,
)
from datamodules.schema import Schema
from datamodules.sequences import on_device
from datamodules.splits import NAMES, require_training_share
from datamodules.vision import other
from datamodules.vision.decoded import How, Source, decoded
from datamodules.vision.kept import Decoded
from datamodules.vision.statistics import statistics
from datamodules.vision.undecoded import undecoded

EVAL_BATCH_SIZE = 512
SMALLEST = 4  # pixels of a side: the networks halve it


class Options(PictureOptions, Augmentation):
    """What all image classification data have in common.

    Attributes:
        image_size: height, or [height, width], that pictures are resized to; None where all have one size.
        decode: once, into a cached file that is mapped into memory and lives on the device; or always, in every epoch,
            where that would be too large.
        class_weights: of the loss: none, balanced, or a mapping of classes to weights.
    """

    image_size: Count | list[Count] | None
    decode: Literal["once", "always"]
    class_weights: label.Weights


@dataclass(frozen=True)
class Given:
    """Pictures of a split that the data name, with their labels, texts."""

    source: Source
    labels: Column

    def source_of(self, how: How) -> Source:
        """The pictures, however they are decoded."""
        return self.source


@dataclass(frozen=True)
class Rows:
    """Pictures of a split, as `Decoded` has them, with what they were called and are labelled."""

    pixels: Any
    names: Column
    labels: Column

    def take(self, places: NDArray[Any]) -> "Rows":
        """The rows at these places, or where a mask is true."""
        chosen = np.flatnonzero(places) if places.dtype == bool else places
        return Rows(taken(self.pixels, chosen), self.names.take(pa.array(chosen)), self.labels.take(pa.array(chosen)))


class VisionDataModule(LightningDataModule):
    """Decodes, splits and batches pictures; `Digits` and the others say where they come from.

    After `setup`: `schema`; `tensors[split]` with image (uint8 [N, H, W, 3], a tensor, or with decode=always what is
    indexed like one), target (int64 [N]) and row, the number of the row in the split; `names[split]` of the pictures;
    `fingerprint` of pictures and labels; `notes` for the user; one-line `summary`. `load_other` and `iter_other` read
    other data by a finished run's schema.

    Args:
        raw: what reading other data needs; kept in the schema.
        options: see `Options`.
    """

    name = "images"

    def __init__(self, raw: Mapping[str, Any], options: Options) -> None:
        super().__init__()
        require_training_share(options)
        self.raw, self.options = dict(raw), options
        self.decode = decoded if options["decode"] == "once" else undecoded
        self.schema: Schema = {}
        self.tensors: dict[str, dict[str, Any]] = {}
        self.names: dict[str, Column] = {}
        self.fingerprint, self.summary = "", ""
        self.notes: list[str] = []
        self.unseen: Counter[str] = Counter()

    def read(self) -> dict[str, Given]:
        """For each split that the data name, train first, its pictures and labels."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        """Decode and split; a second call does nothing."""
        if self.tensors:
            return
        rows = self._split(self._decoded(self.read()))
        if not len(rows["train"].labels):
            raise ValueError(f"{self.name}: there are no training images")
        classes = label.classes_of(rows["train"].labels, self.raw["label"])
        rows = {split: self.known(own, classes, f"{split} images") for split, own in rows.items()}
        for split, own in rows.items():
            self.tensors[split], self.names[split] = _tensors(own, classes), own.names
        self.schema = self._schema(classes)
        self._describe()

    def load_other(self, uri: str, schema: Schema) -> dict[str, Any]:
        """All labelled pictures at another place by a finished run's schema; keys as in `tensors[split]`.

        A table has the columns that the schema names; a folder has class folders. `names["test"]` are theirs then.
        """
        given = Given(*other.labelled(uri, schema["raw"], self.notes))
        found = self.decode(given.source, self.how(tuple(schema["image_size"])))
        note_decoded({uri: found}, self.notes)
        rows = self.known(_rows(given, found), schema["classes"], f"images of {uri}")
        self.names["test"] = rows.names
        return _tensors(rows, schema["classes"])

    def iter_other(self, uri: str, schema: Schema) -> Iterator[tuple[pa.RecordBatch, dict[str, Tensor]]]:
        """Batches of another table, or of the files of a folder as one, in its order, each with its pictures."""
        how = self.how(tuple(schema["image_size"]))._replace(unreadable="error")  # no row may be missing
        for batch, source in other.batches(uri, schema["raw"]):
            if batch.num_rows:
                found = decoded(source if self.decode is decoded else replace(source, version=None), how)
                pixels = found.pixels[np.argsort(found.places)]
            else:
                pixels = np.empty((0, *schema["image_size"], 3), np.uint8)
            yield batch, {"image": torch.from_numpy(pixels)}

    def raw_inputs(self, split: str, num_rows: int) -> dict[str, NDArray[Any]]:
        """What an exported graph takes of the first rows of a split, after `setup`: uint8 [N, H, W, 3]."""
        return {"image": self.tensors[split]["image"][:num_rows].numpy()}

    def encode_raw(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
        """The model's inputs of what an exported graph takes."""
        return encoded_raw(arrays)

    def train_dataloader(self) -> AugmentedLoader:
        """Shuffled and augmented training batches, lists of `batches_per_call` of them."""
        return AugmentedLoader(
            on_device(self.tensors["train"], self.trainer),
            self.options,
            fill=[round(255 * channel) for channel in self.schema["mean"]],
            batch_size=self.options["batch_size"],
            shuffle=True,
            seed=self.options["seed"],
            batches_per_call=self.options["batches_per_call"],
        )

    def val_dataloader(self) -> TensorLoader | list[TensorLoader]:
        """Validation batches; nothing where there are no validation rows."""
        return self.eval_dataloader(self.tensors["val"])

    def test_dataloader(self) -> TensorLoader | list[TensorLoader]:
        """Test batches; nothing where there are no test rows."""
        return self.eval_dataloader(self.tensors["test"])

    def eval_dataloader(self, tensors: dict[str, Any]) -> TensorLoader | list[TensorLoader]:
        """Batches of rows such as `load_other` gives, as they are."""
        if not len(tensors["target"]):
            return []
        return TensorLoader(on_device(tensors, self.trainer), batch_size=EVAL_BATCH_SIZE, shuffle=False)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Return the batch as it is: the loaders' tensors live on the device."""
        return batch

    def how(self, size: Size | None) -> How:
        """How pictures are decoded."""
        return How(size, self.options["most_pixels"], self.options["unreadable"])

    @property
    def image_size(self) -> Size | None:
        """Height and width that the options ask for. Raises ValueError for others than one or two numbers."""
        asked = self.options["image_size"]
        return None if asked is None else size_of(asked, smallest=SMALLEST)

    def known(self, rows: Rows, classes: list[str], what: str) -> Rows:
        """The rows with a label that training has seen; how many have another is noted."""
        is_known, strange = label.known(rows.labels, classes)
        if not strange:
            return rows
        some = ", ".join(map(repr, strange[:5])) + (", ..." if len(strange) > 5 else "")
        self.notes.append(f"{int((~is_known).sum()):,} {what} have a label that training has not ({some}): left out")
        return rows.take(is_known)

    def _decoded(self, given: dict[str, Given]) -> dict[str, tuple[Rows, NDArray[np.uint64]]]:
        """For each split that the data name its rows and their hashes; all are of the first one's size."""
        sources = {name: own.source_of for name, own in given.items()}
        found = decoded_alike(sources, self.how(self.image_size), smallest=SMALLEST, decode=self.decode)
        note_decoded({given[name].source.where: one for name, one in found.items()}, self.notes)
        told = hashlib.blake2b(digest_size=16)
        rows = {}
        for name, one in found.items():
            rows[name] = _rows(given[name], one), one.hashes
            told.update(json.dumps([name, *one.pixels.shape, rows[name][0].labels.to_pylist()]).encode())
            told.update(np.ascontiguousarray(one.hashes).data)
        self.fingerprint = told.hexdigest()
        return rows

    def _split(self, given: dict[str, tuple[Rows, NDArray[np.uint64]]]) -> dict[str, Rows]:
        """The splits that the data name, and the others taken out of the training rows by a hash of their pixels."""
        hashes = {name: own for name, (_, own) in given.items()}
        parts = split_by_pixels(hashes, self.options, self.notes)
        return {name: given[origin][0].take(places) for name, (origin, places) in parts.items()}

    def _schema(self, classes: list[str]) -> Schema:
        images, target = self.tensors["train"]["image"], self.tensors["train"]["target"]
        counts = label.counts_of(target, len(classes))
        return {
            "classes": classes,
            "counts": counts,
            "multi_label": False,
            "class_weights": label.weights_of(self.options["class_weights"], classes, counts, len(target)),
            "image_size": list(images.shape[1:3]),
            **statistics(images),
            "raw": self.raw,
            "target": {"name": self.raw["label"]},
        }

    def _describe(self) -> None:
        sizes = [len(self.tensors[split]["target"]) for split in NAMES]
        height, width = self.schema["image_size"]
        self.summary = (
            f"{self.name}: {sum(sizes):,} images of {height} x {width}, {' / '.join(f'{size:,}' for size in sizes)}, "
            f"{len(self.schema['classes']):,} classes"
        )
        few = [name for name, count in zip(self.schema["classes"], self.schema["counts"], strict=True) if 0 < count < 5]
        if few:
            self.notes.append(f"fewer than 5 training images: {', '.join(few[:10])}{', ...' if len(few) > 10 else ''}")
        for split, size in zip(NAMES, sizes, strict=True):
            if not size:
                self.notes.append(f"there are no {split} images")


def _rows(given: Given, found: Decoded) -> Rows:
    places = pa.array(found.places)
    names = pa.array(given.source.names, pa.large_string())
    return Rows(found.pixels, names.take(places), given.labels.take(places))


def _tensors(rows: Rows, classes: list[str]) -> dict[str, Any]:
    target = label.encode(rows.labels, classes)
    return {"image": tensor_of(rows.pixels), "target": target, "row": torch.arange(len(target))}
