"""Masks of objects: exact where they are small, cached, and where their objects are after pictures were changed."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import scenes as composed
from datamodules.detection.augment import AugmentedLoader, augmented, mosaic
from datamodules.detection.masks import framed
from datamodules.detection.objects import MASK_BYTES, SIDE
from datamodules.detection.own import DetectionCoco, DetectionPennFudan
from datamodules.detection.scenes import Scenes

OPTIONS = {
    "val_share": 0.2,
    "test_share": 0.2,
    "image_size": 48,
    "most_pixels": 1_000_000,
    "unreadable": "error",
    "batch_size": 4,
    "batches_per_call": 2,
    "flip": False,
    "scale": 0.0,
    "translate": 0.0,
    "colour": 0.0,
    "mosaic": 0.0,
    "seed": 0,
}
NONE = {"flip": False, "scale": 0.0, "translate": 0.0, "colour": 0.0, "mosaic": 0.0}
SCENES = {**OPTIONS, "num_train": 6, "num_val": 3, "num_test": 3, "scene_seed": 4, "val_share": 0.0, "test_share": 0.0}
SHARED = Path(os.environ.get("FULLCYCLE_DATA") or Path(__file__).parents[3] / "shared" / "data")


def painted(tensors, row, number, size=48):
    """Which pixels of a picture an object covers, looked up the slow way."""
    mask = np.unpackbits(tensors["masks"][row, number].numpy()).reshape(SIDE, SIDE)
    left, top, right, bottom = tensors["frames"][row, number].tolist()
    found = np.zeros((size, size), bool)
    for y in range(size):
        for x in range(size):
            column, line = (x + 0.5 - left) / (right - left) * SIDE, (y + 0.5 - top) / (bottom - top) * SIDE
            if 0 <= column < SIDE and 0 <= line < SIDE:
                found[y, x] = mask[int(line), int(column)]
    return found


def test_masks_of_scenes_are_exact_and_come_from_the_cache_a_second_time(monkeypatch):
    data = Scenes(**SCENES, masks=True)
    data.setup()
    tensors = data.tensors["train"]
    given = {scene.image.tobytes(): scene for scene in composed.scenes("train", 6, size=48, seed=4)}
    for row, image in enumerate(tensors["image"]):
        scene = given[image.numpy().tobytes()]
        for number in range(len(scene.labels)):
            assert np.array_equal(painted(tensors, row, number), scene.owner == number + 1)
    monkeypatch.setattr("datamodules.scenes.scenes", None)  # not composed again
    again = Scenes(**SCENES, masks=True)
    again.setup()
    assert torch.equal(again.tensors["train"]["masks"], tensors["masks"])
    assert again.schema["masks"]


def test_boxes_alone_pay_for_no_masks():
    data = Scenes(**SCENES, masks=False)
    data.setup()
    assert not {"masks", "frames"} & data.tensors["train"].keys()
    assert "masks" not in data.schema


def coco_of(folder, segmentation):
    images, annotations = [], []
    for number in range(20):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 40, "width": 50})
        one = {"image_id": number, "category_id": 1, "bbox": [10, 5, 20, 30], "segmentation": segmentation}
        annotations.append({"id": number, **one})
    told = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    (folder / "all.json").write_text(json.dumps(told))
    places = {"path": f"{folder}/all.json", "val_path": None, "test_path": None, "image_root": None}
    return DetectionCoco(**places, masks=True, **{**OPTIONS, "image_size": [40, 50]})


def test_polygons_are_masks(tmp_path):
    data = coco_of(tmp_path, [[10, 5, 30, 5, 30, 35]])
    data.setup()
    expected = np.zeros((40, 50), bool)
    for y in range(5, 35):
        expected[y, int(np.ceil(10 + (y + 0.5 - 5) * 20 / 30 - 0.5)) : 30] = True
    tensors = data.tensors["train"]
    assert tensors["masks"].shape == (len(tensors["image"]), 1, MASK_BYTES)
    assert (painted(tensors, 0, 0, size=50)[:40] != expected).mean() < 0.005


def test_an_object_without_an_outline_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"all.json, \d+.png, object 1 \(cat\): segmentation must be .*masks=false"):
        coco_of(tmp_path, []).setup()


def test_a_mask_beside_its_box_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"\d+.png, object 1 \(cat\): no pixel of its mask lies in its box"):
        coco_of(tmp_path, [[40, 5, 48, 5, 48, 35]]).setup()


def test_data_without_masks_are_refused_where_a_run_has_them(tmp_path):
    (tmp_path / "labels").mkdir()
    Image.new("RGB", (50, 40)).save(tmp_path / "0.png")
    (tmp_path / "0.txt").write_text("0 0.5 0.5 0.2 0.2")
    data = Scenes(**SCENES, masks=True)
    data.setup()
    with pytest.raises(ValueError, match="there are no masks of objects, which data.masks=true"):
        data.load_other(str(tmp_path), data.schema)


@pytest.mark.skipif(not (SHARED / "vision_pennfudan").is_dir(), reason="needs Penn-Fudan in FULLCYCLE_DATA")
def test_penn_fudans_masks_fill_their_boxes():
    options = {**OPTIONS, "image_size": 64, "num_test": 34, "split_seed": 0}
    data = DetectionPennFudan(path=str(SHARED / "vision_pennfudan"), masks=True, **options)
    data.setup()
    for tensors in data.tensors.values():
        own = np.unpackbits(tensors["masks"][tensors["target"] >= 0].numpy(), axis=1).reshape(-1, SIDE, SIDE)
        assert (own.any(axis=1)[:, [0, -1]].mean(), own.any(axis=2)[:, [0, -1]].mean()) > (0.8, 0.8)
        assert 0.3 < own.mean() < 0.8


def bright(num=12):
    """Dark pictures with one bright triangle, which is the only object."""
    draw = torch.Generator().manual_seed(0)
    corner = torch.randint(4, 20, (num, 2), generator=draw)
    image = torch.zeros(num, 48, 48, 3, dtype=torch.uint8)
    boxes, masks = torch.zeros(num, 1, 4), torch.zeros(num, 1, MASK_BYTES, dtype=torch.uint8)
    covered = np.tril(np.ones((22, 22), bool))
    for row, (x, y) in enumerate(corner.tolist()):
        whole = np.zeros((48, 48), bool)
        whole[y : y + 22, x : x + 22] = covered
        image[row][torch.from_numpy(whole)] = 255
        boxes[row, 0] = torch.tensor([x, y, x + 22, y + 22])
        masks[row, 0] = torch.from_numpy(framed(whole, boxes[row, 0].tolist()))
    more = {"target": torch.zeros(num, 1, dtype=torch.long), "crowd": torch.zeros(num, 1, dtype=torch.bool)}
    return {"image": image, "boxes": boxes, "frames": boxes.clone(), "masks": masks, **more, "row": torch.arange(num)}


def agreement(tensors, row, number=0):
    one, other = painted(tensors, row, number), tensors["image"][row, ..., 0].numpy() > 127
    return (one & other).sum() / (one | other).sum()


@pytest.mark.parametrize("how", [{"flip": True}, {"scale": 0.4}, {"flip": True, "scale": 0.3, "translate": 0.4}])
def test_masks_are_where_their_objects_are_after_they_were_moved(how):
    given = bright()
    changed = {**given, **augmented(given, {**NONE, **how}, seed=1, epoch=2)}
    assert not torch.equal(changed["image"], given["image"])
    is_there = changed["target"][:, 0] >= 0
    assert is_there.all() or "translate" in how
    assert is_there.sum() >= 8
    for row in is_there.nonzero().flatten():
        assert agreement(changed, row) > 0.85


def test_a_mosaic_has_the_masks_of_its_four_pictures():
    given = bright()
    parts = {name: values[:4].unsqueeze(0) for name, values in given.items() if name != "row"}
    whole = mosaic(parts)
    together = np.any([painted(whole, 0, number) for number in range(4)], axis=0)
    bright_ones = whole["image"][0, ..., 0].numpy() > 127
    assert (together & bright_ones).sum() / (together | bright_ones).sum() > 0.85


def test_the_loader_gives_masks_of_mosaics():
    loader = AugmentedLoader(bright(), {**NONE, "mosaic": 0.5}, batch_size=12, shuffle=True, seed=0, batches_per_call=1)
    ((batch,),) = list(loader)
    assert batch["target"].shape == (12, 4)
    assert batch["masks"].shape == (12, 4, MASK_BYTES)
    assert batch["frames"].shape == (12, 4, 4)
