"""What all detection data share: pictures are decoded once into a cached file, their boxes scaled along, and split."""

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

from datamodules.detection import other
from datamodules.detection.augment import Augmentation, AugmentedLoader
from datamodules.detection.given import Given
from datamodules.detection.masks import with_masks
from datamodules.detection.objects import Objects, cut, known, tensors_of
from datamodules.loading import TensorLoader
from datamodules.pictures import Count, PictureOptions, encoded_raw, note_decoded, size_of, split_by_pixels, tensor_of
from datamodules.schema import Schema
from datamodules.sequences import on_device
from datamodules.splits import NAMES, require_training_share
from datamodules.vision.decoded import Decoded, How, decoded
from datamodules.vision.statistics import statistics

EVAL_BATCH_SIZE = 64
MASKED_BATCH_SIZE = 8  # of a hundred detections each, every one with a mask
MOST_PIXELS = 2_000_000  # that tell mean and spread of colours: more do not move them
SMALLEST = 32  # pixels of a side: the networks halve it five times


class Options(PictureOptions, Augmentation):
    """What all detection data have in common.

    Attributes:
        image_size: height, or [height, width], that images are resized to, whatever their aspect.
    """

    image_size: Count | list[Count]


@dataclass(frozen=True)
class Rows:
    """Decoded pictures of a split, with their names, sizes before resizing (int32 [N, 2]) and objects."""

    pixels: NDArray[np.uint8]
    names: list[str]
    sizes: NDArray[np.int32]
    objects: list[Objects]

    def take(self, places: NDArray[np.int64]) -> "Rows":
        """The rows at ascending places; a slice of one piece is not copied."""
        is_slice = len(places) and places[-1] - places[0] + 1 == len(places)
        pixels = self.pixels[places[0] : places[-1] + 1] if is_slice else self.pixels[places]
        names, objects = [self.names[place] for place in places], [self.objects[place] for place in places]
        return Rows(pixels, names, self.sizes[places], objects)


class DetectionDataModule(LightningDataModule):
    """Decodes, splits and batches pictures with boxes; `Scenes` and the others say where they come from.

    After `setup`: `schema`; `tensors[split]` with image (uint8 [N, H, W, 3]), boxes, target and crowd as `tensors_of`
    has them, size (int32 [N, 2]: height and width before resizing) and row; `names[split]` of the pictures;
    `fingerprint` of pictures and objects; `notes` for the user; one-line `summary`. `load_other` and `iter_other` read
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
        self.size = size_of(options["image_size"], smallest=SMALLEST)
        self.schema: Schema = {}
        self.tensors: dict[str, dict[str, Tensor]] = {}
        self.names: dict[str, list[str]] = {}
        self.fingerprint, self.summary = "", ""
        self.notes: list[str] = []
        self.unseen: Counter[str] = Counter()

    def read(self) -> dict[str, Given]:
        """For each split that the data name, train first, its pictures and objects."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        """Decode and split; a second call does nothing."""
        if self.tensors:
            return
        given = self.read()
        found = {name: decoded(own.source, self._how()) for name, own in given.items()}
        rows = {name: self._rows(given[name], one) for name, one in found.items()}
        self.fingerprint = _fingerprint(found, rows)
        parts = split_by_pixels({name: one.hashes for name, one in found.items()}, self.options, self.notes)
        splits = {name: rows[origin].take(places) for name, (origin, places) in parts.items()}
        classes = _classes(splits["train"], self.name)
        for split, own in splits.items():
            self.tensors[split], self.names[split] = self._tensors(own, classes, f"{split} images"), own.names
        self.schema = self._schema(classes)
        self._describe()

    def load_other(self, uri: str, schema: Schema) -> dict[str, Tensor]:
        """All pictures with annotations at another place by a finished run's schema; keys as in `tensors[split]`."""
        given = other.annotated(uri, {**schema["raw"], **self.raw}, self.notes)
        rows = self._rows(given, decoded(given.source, self._how(schema)))
        self.names["test"] = rows.names
        return self._tensors(rows, schema["classes"], f"images of {uri}")

    def iter_other(self, uri: str, schema: Schema) -> Iterator[tuple[pa.RecordBatch, dict[str, Tensor]]]:
        """Batches of another table, or of the files of a folder as one, in its order, each with its pictures."""
        how = self._how(schema)._replace(unreadable="error")  # no row may be missing
        for batch, source in other.batches(uri, {**schema["raw"], **self.raw}):
            pixels, sizes = np.empty((0, *schema["image_size"], 3), np.uint8), np.empty((0, 2), np.int32)
            if batch.num_rows:
                found = decoded(source, how)
                order = np.argsort(found.places)
                pixels, sizes = found.pixels[order], found.sizes[order]
            yield batch, {"image": torch.from_numpy(pixels), "size": torch.from_numpy(sizes)}

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
        size = MASKED_BATCH_SIZE if "masks" in tensors else EVAL_BATCH_SIZE
        return TensorLoader(on_device(tensors, self.trainer), batch_size=size, shuffle=False)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Return the batch as it is: the loaders' tensors live on the device."""
        return batch

    def _how(self, schema: Schema | None = None) -> How:
        size = tuple(schema["image_size"]) if schema else self.size
        return How((size[0], size[1]), self.options["most_pixels"], self.options["unreadable"])

    def _rows(self, given: Given, found: Decoded) -> Rows:
        """The pictures with their objects, which are cut to them; what was handled is noted."""
        note_decoded({given.source.where: found}, self.notes)
        names = [given.source.names[place] for place in found.places]
        objects = [given.of(int(place), size) for place, size in zip(found.places, found.sizes, strict=True)]
        if self.raw.get("masks"):
            objects = with_masks(given, objects, found)
        return Rows(found.pixels, names, found.sizes, cut(objects, found.sizes, names, self.notes))

    def _tensors(self, rows: Rows, classes: list[str], what: str) -> dict[str, Tensor]:
        images = tensor_of(rows.pixels)
        height, width = images.shape[1:3]
        objects = tensors_of(known(rows.objects, classes, what, self.notes), rows.sizes, (height, width), classes)
        return {"image": images, **objects, "size": torch.from_numpy(rows.sizes), "row": torch.arange(len(images))}

    def _schema(self, classes: list[str]) -> Schema:
        tensors = self.tensors["train"]
        is_learnt = (tensors["target"] >= 0) & ~tensors["crowd"]
        counts = torch.bincount(tensors["target"][is_learnt], minlength=len(classes))
        height, width = tensors["image"].shape[1:3]
        num = min(len(tensors["image"]), max(1, MOST_PIXELS // (height * width)))
        some = tensors["image"][torch.linspace(0, len(tensors["image"]) - 1, num).long()]
        return {
            "classes": classes,
            "counts": [int(count) for count in counts],
            "image_size": [height, width],
            **statistics(some),
            "raw": self.raw,
            **({"masks": True} if self.raw.get("masks") else {}),
        }

    def _describe(self) -> None:
        sizes = [len(self.tensors[split]["target"]) for split in NAMES]
        height, width = self.schema["image_size"]
        self.summary = (
            f"{self.name}: {sum(sizes):,} images of {height} x {width}, {' / '.join(f'{size:,}' for size in sizes)}, "
            f"{sum(self.schema['counts']):,} objects to learn from, {len(self.schema['classes']):,} classes"
        )
        for split, size in zip(NAMES, sizes, strict=True):
            if not size:
                self.notes.append(f"there are no {split} images")
            elif not (self.tensors[split]["target"] >= 0).any():
                raise ValueError(f"{self.name}: none of the {size:,} {split} images has an object: there is no mAP")
            elif bare := int((self.tensors[split]["target"] < 0).all(dim=1).sum()):
                self.notes.append(f"{bare:,} {split} images have no objects")


def _classes(training: Rows, name: str) -> list[str]:
    """All labels of training objects, sorted; numbers, as YOLO's, by their value."""
    found = {
        label
        for objects in training.objects
        for label, is_crowd in zip(objects.labels, objects.is_crowd, strict=True)
        if not is_crowd
    }
    if not found:
        raise ValueError(f"{name}: the {len(training.names):,} training images have no objects to learn from")
    return sorted(found, key=lambda label: (int(label), label) if label.isdecimal() else (-1, label))


def _fingerprint(found: Mapping[str, Decoded], rows: Mapping[str, Rows]) -> str:
    told = hashlib.blake2b(digest_size=16)
    for name, own in rows.items():
        told.update(json.dumps([name, *own.pixels.shape, [one.labels for one in own.objects]]).encode())
        told.update(np.ascontiguousarray(found[name].hashes).data)
        for one in own.objects:
            told.update(np.ascontiguousarray(one.boxes).data)
            told.update(np.ascontiguousarray(one.is_crowd).data)
            if one.masks is not None:
                told.update(np.ascontiguousarray(one.masks).data)
    return told.hexdigest()
