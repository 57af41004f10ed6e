"""What all segmentation data share: pictures and masks are decoded once into a cached file, split, batched by index."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pytorch_lightning import LightningDataModule
from torch import Tensor

from datamodules import labels as label
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
    tensor_of,
)
from datamodules.schema import Schema
from datamodules.segmentation import other
from datamodules.segmentation.augment import MaskAugmentation, MaskLoader
from datamodules.segmentation.masks import IGNORED, MOST_CLASSES, Meaning, Pairs, table_of
from datamodules.sequences import on_device
from datamodules.splits import NAMES, require_training_share
from datamodules.vision.decoded import How, decoded
from datamodules.vision.statistics import statistics

EVAL_PIXELS = 2_000_000  # of a batch that is only scored
RAW_PIXELS = 16_000_000  # of the rows that an exported graph is held against torch with
SMALLEST = 16  # pixels of a side: the networks halve it four times


class Options(PictureOptions, MaskAugmentation):
    """What all segmentation data have in common.

    Attributes:
        image_size: height, or [height, width], that pictures are resized to; None where all have one size.
        class_weights: of the loss: none, balanced, or a mapping of classes to weights.
    """

    image_size: Count | list[Count] | None
    class_weights: label.Weights


@dataclass(frozen=True)
class Rows:
    """Decoded pictures of a split: uint8 [N, H, W, 4], the mask last, and what they were called."""

    pixels: NDArray[np.uint8]
    names: NDArray[Any]

    def take(self, places: NDArray[Any]) -> "Rows":
        """The rows at these places; a slice of one piece is not copied."""
        is_slice = len(places) and places[-1] - places[0] + 1 == len(places)
        chosen = slice(places[0], places[-1] + 1) if is_slice else places
        return Rows(self.pixels[chosen], self.names[chosen])


class SegmentationDataModule(LightningDataModule):
    """Decodes, splits and batches pictures with masks; `SegmentationScenes` and the others say where they come from.

    After `setup`: `schema`; `tensors[split]` with image (uint8 [N, H, W, 3]), target (uint8 [N, H, W], 255 for pixels
    that count for nothing) and row, the number of the row in the split; `names[split]` of the pictures; `fingerprint`
    of pictures and masks; `notes` for the user; one-line `summary`. `load_other` and `iter_other` read other data by a
    finished run's schema.

    Args:
        raw: what reading other data needs; kept in the schema.
        meaning: of the masks' values.
        options: see `Options`.
    """

    name = "images"

    def __init__(self, raw: Mapping[str, Any], meaning: Meaning, options: Options) -> None:
        super().__init__()
        require_training_share(options)
        self.raw, self.meaning, self.options = dict(raw), meaning, options
        self.schema: Schema = {}
        self.tensors: dict[str, dict[str, Tensor]] = {}
        self.names: dict[str, NDArray[Any]] = {}
        self.fingerprint, self.summary = "", ""
        self.notes: list[str] = []
        self.unseen: Counter[str] = Counter()

    def read(self) -> dict[str, Pairs]:
        """For each split that the data name, train first, its pictures and masks."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        """Decode and split; a second call does nothing."""
        if self.tensors:
            return
        rows = self._split(self._decoded(self.read()))
        if not len(rows["train"].names):
            raise ValueError(f"{self.name}: there are no training images")
        values = self.meaning.values or self._values(rows["train"].pixels)
        for split, own in rows.items():
            self.tensors[split], self.names[split] = self._tensors(own, values, split), own.names
        self.schema = self._schema(values)
        self._describe()

    def load_other(self, uri: str, schema: Schema) -> dict[str, Tensor]:
        """All pictures with masks at another place by a finished run's schema; keys as in `tensors[split]`."""
        raw = {**schema["raw"], **self.raw}  # names and folders may be others there
        values = dict(zip(schema["classes"], raw["values"], strict=True))
        named = values if raw["is_named"] else None
        self.meaning = Meaning(named, raw["ignore"])
        pairs = other.labelled(uri, raw, self.meaning, schema["classes"], self.options, self.notes)
        how = self.how(tuple(schema["image_size"]))
        found = decoded(pairs.source(how), how)
        note_decoded({uri: found}, self.notes)
        rows = Rows(found.pixels, np.array(pairs.names, dtype=object)[found.places])
        self.names["test"] = rows.names
        return self._tensors(rows, values, uri)

    def iter_other(self, uri: str, schema: Schema) -> Iterator[tuple[pa.RecordBatch, dict[str, Tensor]]]:
        """Batches of a table with a column of images, or of the images of a folder as one, in its order."""
        how = self.how(tuple(schema["image_size"]))._replace(unreadable="error")  # no row may be missing
        for batch, source in other.batches(uri, {**schema["raw"], **self.raw}):
            if batch.num_rows:
                found = decoded(source, how)
                pixels = found.pixels[np.argsort(found.places)]
            else:
                pixels = np.empty((0, *schema["image_size"], 3), np.uint8)
            yield batch, {"image": torch.from_numpy(pixels)}

    def raw_inputs(self, split: str, num_rows: int) -> dict[str, NDArray[Any]]:
        """What an exported graph takes of the first rows of a split, after `setup`: uint8 [N, H, W, 3].

        Of large pictures fewer rows: a network's activations are many times their size.
        """
        images = self.tensors[split]["image"]
        return {"image": images[: max(2, min(num_rows, RAW_PIXELS // images[0, ..., 0].numel()))].numpy()}

    def encode_raw(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
        """The model's inputs of what an exported graph takes."""
        return encoded_raw(arrays)

    def train_dataloader(self) -> MaskLoader:
        """Shuffled and augmented training batches, lists of `batches_per_call` of them."""
        return MaskLoader(
            on_device(self.tensors["train"], self.trainer),
            self.options,
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

    def eval_dataloader(self, tensors: dict[str, Tensor]) -> TensorLoader | list[TensorLoader]:
        """Batches of rows such as `load_other` gives, as they are."""
        if not len(tensors["target"]):
            return []
        batch_size = max(1, EVAL_PIXELS // tensors["target"][0].numel())
        return TensorLoader(on_device(tensors, self.trainer), batch_size=batch_size, shuffle=False)

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

    def _decoded(self, given: dict[str, Pairs]) -> dict[str, tuple[Rows, NDArray[np.uint64]]]:
        """For each split that the data name its rows and their hashes; all are of the first one's size."""
        sources = {name: own.source for name, own in given.items()}
        found = decoded_alike(sources, self.how(self.image_size), smallest=SMALLEST)
        note_decoded({given[name].where: one for name, one in found.items()}, self.notes)
        told = hashlib.blake2b(digest_size=16)
        rows = {}
        for name, one in found.items():
            rows[name] = Rows(one.pixels, np.array(given[name].names, dtype=object)[one.places]), one.hashes
            told.update(json.dumps([name, *one.pixels.shape, self.meaning.values, self.meaning.ignore]).encode())
            told.update(np.ascontiguousarray(one.hashes).data)
            told.update(np.ascontiguousarray(one.pixels[..., 3]).data)
        self.fingerprint = told.hexdigest()
        return rows

    def _split(self, given: dict[str, tuple[Rows, NDArray[np.uint64]]]) -> dict[str, Rows]:
        """The splits that the data name, and the others taken out of the training rows by a hash of their pixels."""
        hashes = {name: own for name, (_, own) in given.items()}
        parts = split_by_pixels(hashes, self.options, self.notes)
        return {name: given[origin][0].take(places) for name, (origin, places) in parts.items()}

    def _values(self, pixels: NDArray[np.uint8]) -> dict[str, int]:
        """The classes of masks whose values have no names: those that training masks have."""
        counts = sum(np.bincount(mask.ravel(), minlength=256) for mask in pixels[..., 3])
        found = [int(value) for value in np.flatnonzero(counts) if value != self.meaning.ignore]
        if len(found) < 2 or len(found) > MOST_CLASSES:
            ignored = "" if self.meaning.ignore is None else f" besides data.ignore={self.meaning.ignore}"
            raise ValueError(
                f"{self.name}: the training masks must have 2 to {MOST_CLASSES} different values{ignored}; they have "
                f"{', '.join(map(str, found[:5])) or 'none'}"
            )
        return {str(value): value for value in found}

    def _tensors(self, rows: Rows, values: Mapping[str, int], what: str) -> dict[str, Tensor]:
        """The rows as tensors, masks as classes; a file's memory stays one where its values are the classes."""
        pixels = tensor_of(rows.pixels)
        target = pixels[..., 3]
        if self.meaning.values is None:
            # Not all in one go: indexing makes eight bytes of each.
            table = torch.from_numpy(table_of(list(values.values())))
            parts = [(table[some.long()], some) for some in torch.split(target, 64)]
            is_unseen = [(found == IGNORED) & (raw != self._ignore) for found, raw in parts]
            target = torch.cat([found for found, _ in parts]) if parts else target
            if count := sum(int(some.sum()) for some in is_unseen):
                pictures = sum(int(some.any(dim=2).any(dim=1).sum()) for some in is_unseen)
                self.notes.append(
                    f"{count:,} pixels of {pictures:,} masks ({what}) have values that training has not: ignored"
                )
        return {"image": pixels[..., :3], "target": target, "row": torch.arange(len(target))}

    @property
    def _ignore(self) -> int:
        return -1 if self.meaning.ignore is None else self.meaning.ignore

    def _schema(self, values: Mapping[str, int]) -> Schema:
        images, target = self.tensors["train"]["image"], self.tensors["train"]["target"]
        classes = list(values)
        pixels = sum(torch.bincount(mask.flatten(), minlength=256) for mask in target)
        counts = [int(count) for count in pixels[: len(classes)]]  # type: ignore[index]
        raw = {"values": list(values.values()), "is_named": self.meaning.values is not None}
        return {
            "classes": classes,
            "counts": counts,
            "class_weights": label.weights_of(self.options["class_weights"], classes, counts, sum(counts)),
            "image_size": list(images.shape[1:3]),
            **statistics(images),
            "raw": {**self.raw, **raw, "ignore": self.meaning.ignore},
            "target": {"name": "mask"},
        }

    def _describe(self) -> None:
        sizes = [len(self.tensors[split]["target"]) for split in NAMES]
        height, width = self.schema["image_size"]
        classes, counts = self.schema["classes"], self.schema["counts"]
        self.summary = (
            f"{self.name}: {sum(sizes):,} images of {height} x {width}, {' / '.join(f'{size:,}' for size in sizes)}, "
            f"{len(classes):,} classes, {max(counts) / max(sum(counts), 1):.0%} of pixels "
            f"{classes[int(np.argmax(counts))]}"
        )
        if absent := [name for name, count in zip(classes, counts, strict=True) if not count]:
            self.notes.append(f"no training mask has {', '.join(absent[:10])}{', ...' if len(absent) > 10 else ''}")
        for split, size in zip(NAMES, sizes, strict=True):
            target = self.tensors[split]["target"]
            if not size:
                self.notes.append(f"there are no {split} images")
            elif empty := sum(int((some == IGNORED).flatten(1).all(dim=1).sum()) for some in torch.split(target, 64)):
                self.notes.append(f"{empty:,} {split} masks have no pixel that counts")
