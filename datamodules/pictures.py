"""What data modules of pictures share, whatever is to be said of them: options, sizes, splits and notes."""

import warnings
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypedDict

import numpy as np
import torch
from annotated_types import Ge, Gt, Lt
from numpy.typing import NDArray
from torch import Tensor

from datamodules.images import Size
from datamodules.splits import NAMES, parts_by_hash
from datamodules.vision.decoded import How, Source, Unreadable, decoded
from datamodules.vision.kept import Decoded
from datamodules.vision.undecoded import Undecoded

LARGEST = 16_384  # side that pictures may be resized to

Count = Annotated[int, Gt(0)]
Share = Annotated[float, Ge(0), Lt(1)]


class PictureOptions(TypedDict):
    """What all data of pictures have in common.

    Attributes:
        val_share: share of the training pictures that validate, where the data name no validation pictures.
        test_share: share of the training pictures that test, where the data name no test pictures.
        most_pixels: of an image file; larger ones are refused.
        unreadable: what is done about files that cannot be used: error or skip.
        batch_size: pictures per optimizer step, over all processes together.
        batches_per_call: mini-batches handed to one training_step.
        seed: of the order of training pictures and of their augmentation.
    """

    val_share: Share
    test_share: Share
    most_pixels: Annotated[int, Gt(0), Lt(2**31)]
    unreadable: Unreadable
    batch_size: Count
    batches_per_call: Count
    seed: Annotated[int, Ge(0)]


def size_of(asked: int | list[int], *, smallest: int) -> Size:
    """Height and width that options ask for. Raises ValueError for others than one or two numbers."""
    sides = [asked, asked] if isinstance(asked, int) else list(asked)
    if len(sides) != 2 or min(sides) < smallest or max(sides) > LARGEST:
        raise ValueError(
            f"image_size must be HEIGHT or [HEIGHT,WIDTH] of {smallest} to {LARGEST:,} pixels a side, got {asked}"
        )
    return sides[0], sides[1]


def decoded_alike(
    sources: Mapping[str, Callable[[How], Source]],
    how: How,
    *,
    smallest: int,
    decode: Callable[[Source, How], Decoded] = decoded,
) -> dict[str, Decoded]:
    """Decode the pictures of each split; where `how` has no size, all are of the first one's.

    Raises ValueError where those are smaller than `smallest` pixels a side.
    """
    found = {}
    for name, source_of in sources.items():
        source = source_of(how)
        found[name] = decode(source, how)
        height, width = found[name].pixels.shape[1:3]
        if min(height, width) < smallest:
            raise ValueError(
                f"{source.where}: images of {height} x {width} pixels are too small for a network; give "
                f"data.image_size={smallest} or more"
            )
        how = how._replace(size=(height, width))
    return found


def split_by_pixels(
    hashes: dict[str, NDArray[np.uint64]], options: PictureOptions, notes: list[str]
) -> dict[str, tuple[str, NDArray[np.int64]]]:
    """The splits that the data name, and the others taken out of the training rows, by a hash of their pixels.

    Pictures that train and are in another split as well are noted.
    """
    parts = parts_by_hash(hashes, options)
    training = hashes["train"][parts["train"][1]]
    for name in (name for name in NAMES[1:] if name in hashes):
        if num_known := int(np.isin(hashes[name], training).sum()):
            notes.append(f"leakage: {num_known:,} of the {len(hashes[name]):,} {name} images train, too")
    if num_more := len(training) - len(np.unique(training)):
        notes.append(f"{num_more:,} training images are the same as another one")
    return parts


def note_decoded(found: Mapping[str, Decoded], notes: list[str]) -> None:
    """Note of each place what its pictures were that plain ones are not, and which are left out."""
    for where, one in found.items():
        notes += [f"{count:,} images of {where} are {what}" for what, count in one.handled.items()]
        if one.unreadable:
            name, why = next(iter(one.unreadable.items()))
            num, more = len(one.unreadable), ", ..." if len(one.unreadable) > 1 else ""
            notes.append(f"{num:,} images of {where} are left out, since they cannot be used: {name}: {why}{more}")


def taken(pixels: Any, places: NDArray[np.int64]) -> Any:
    """The pictures at these places; a slice of one piece is not copied, and what is not decoded stays so."""
    if isinstance(pixels, Undecoded):
        return pixels.take(places)
    is_slice = len(places) and places[-1] - places[0] + 1 == len(places)
    return pixels[places[0] : places[-1] + 1] if is_slice else pixels[places]


def tensor_of(pixels: Any) -> Any:
    """The pixels of a memory-mapped file as a tensor of the same memory, to which nobody may write; or `Undecoded`."""
    if isinstance(pixels, Undecoded):
        return pixels
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(pixels)


def encoded_raw(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    """The model's inputs of what an exported graph takes."""
    return {name: torch.from_numpy(np.require(array, requirements=["C", "W"])) for name, array in arrays.items()}
