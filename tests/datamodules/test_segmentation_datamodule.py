"""Pictures and masks are paired, decoded once, split and batched; what is wrong with them is told with the file."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from datamodules.segmentation.coco import CocoMasks
from datamodules.segmentation.folder import MaskFolder
from datamodules.segmentation.masks import IGNORED, Meaning
from datamodules.segmentation.penn_fudan import PennFudanMasks
from datamodules.segmentation.scenes import SegmentationScenes
from datamodules.segmentation.table import MaskTable

OPTIONS = {
    "val_share": 0.25,
    "test_share": 0.25,
    "image_size": None,
    "most_pixels": 1_000_000,
    "unreadable": "error",
    "batch_size": 4,
    "batches_per_call": 2,
    "flip": False,
    "translate": 0,
    "scale": 0.0,
    "brightness": 0.0,
    "colour": 0.0,
    "class_weights": "none",
    "seed": 0,
}
FOLDER = {"images": "images", "masks": "masks", "mask_suffix": "", "classes": None, "ignore": 255}
NUM = 24


def pictures(num=NUM, *, seed=0, size=(16, 20)):
    """Pictures whose red is 100 times their mask, and masks of 0 and 1."""
    draw = np.random.default_rng(seed)
    images = draw.integers(0, 40, (num, *size, 3)).astype(np.uint8)
    masks = np.zeros((num, *size), np.uint8)
    for mask in masks:
        top, left = draw.integers(0, 8, 2)
        mask[top : top + 8, left : left + 8] = 1
    images[..., 0] = masks * 100
    return images, masks


def save(path, values, *, palette=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(values)
    if palette:
        picture = Image.fromarray(values, mode=None).convert("L")
        picture = Image.frombytes("P", picture.size, picture.tobytes())
        picture.putpalette([200, 0, 0, 0, 200, 0] + [7] * 762)
    picture.save(path)


def folder(root, num=NUM, *, split="", seed=0, **options):
    images, masks = pictures(num, seed=seed)
    for number in range(num):
        save(root / split / "images" / f"{number}.png", images[number])
        save(root / split / "masks" / f"{number}.png", masks[number], **options)
    return images, masks


def made(root, kind=MaskFolder, **changed):
    own = FOLDER if kind is MaskFolder else {}
    module = kind(**{"path": str(root), **own, **OPTIONS, **changed})
    module.setup()
    return module


def total(module):
    return {split: len(part["row"]) for split, part in module.tensors.items()}


@pytest.mark.parametrize("palette", [False, True])
def test_pairs_are_split_by_their_pixels_and_masks_lie_behind_their_pictures(tmp_path, palette):
    folder(tmp_path, palette=palette)
    module = made(tmp_path)
    assert sum(total(module).values()) == NUM
    assert all(total(module).values())
    for part in module.tensors.values():
        assert torch.equal(part["image"][..., 0], part["target"] * 100)
        assert part["image"].dtype == part["target"].dtype == torch.uint8
    assert module.schema["classes"] == ["0", "1"]
    assert sum(module.schema["counts"]) == total(module)["train"] * 16 * 20
    again = made(tmp_path)
    assert again.fingerprint == module.fingerprint
    assert json.loads(json.dumps(module.schema)) == module.schema
    assert "24 images of 16 x 20" in module.summary


def test_another_mask_is_another_fingerprint(tmp_path):
    _, masks = folder(tmp_path)
    before = made(tmp_path).fingerprint
    save(tmp_path / "masks" / "3.png", 1 - masks[3])
    assert made(tmp_path).fingerprint != before


@pytest.mark.parametrize("inside", [False, True])
def test_folders_name_the_splits(tmp_path, inside):
    folder(tmp_path, 8, split="train")
    folder(tmp_path, 5, split="val", seed=1)
    if inside:
        for split in ("train", "val"):
            for kind in ("images", "masks"):
                (tmp_path / kind).mkdir(exist_ok=True)
                shutil.move(tmp_path / split / kind, tmp_path / kind / split)
            (tmp_path / split).rmdir()
    module = made(tmp_path, test_share=0.0)
    assert total(module) == {"train": 8, "val": 5, "test": 0}
    assert "there are no test images" in module.notes


def test_a_folder_beside_those_of_splits_is_refused(tmp_path):
    folder(tmp_path, 8, split="train")
    folder(tmp_path, 5, split="test", seed=1)
    folder(tmp_path, 5, split="more", seed=2)
    with pytest.raises(ValueError, match="test, train name splits, and more beside them none: rename it or move it"):
        made(tmp_path)


def test_annotations_of_no_objects_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"annotations\.json: there are no objects to learn from"):
        painted(tmp_path, [])


def test_pictures_are_resized_bilinearly_and_masks_to_the_nearest(tmp_path):
    folder(tmp_path, 6)
    images, masks = pictures(3, seed=5, size=(40, 30))
    for number in range(3):
        save(tmp_path / "images" / f"large{number}.jpg", images[number])
        save(tmp_path / "masks" / f"large{number}.png", masks[number])
    with pytest.raises(ValueError, match="images differ in size.*give data.image_size"):
        made(tmp_path)
    module = made(tmp_path, image_size=[32, 24])
    for part in module.tensors.values():
        assert part["image"].shape[1:] == (32, 24, 3)
        assert set(part["target"].unique().tolist()) <= {0, 1}
        near = (part["image"][..., 0] > 50) == (part["target"] == 1)
        assert near.float().mean() > 0.9


def test_classes_have_names_and_values_and_pixels_may_count_for_nothing(tmp_path):
    _, masks = folder(tmp_path)
    for number, mask in enumerate(masks):
        values = mask * 90
        values[0] = 7
        save(tmp_path / "masks" / f"{number}.png", values)
    module = made(tmp_path, classes={"field": 0, "cow": 90}, ignore=7)
    assert module.schema["classes"] == ["field", "cow"]
    assert (module.tensors["train"]["target"][:, 0] == IGNORED).all()
    assert set(module.tensors["train"]["target"][:, 1:].unique().tolist()) == {0, 1}
    derived = made(tmp_path, ignore=7)
    assert derived.schema["classes"] == ["0", "90"]
    assert torch.equal(derived.tensors["val"]["target"], module.tensors["val"]["target"])
    with pytest.raises(ValueError, match=r"\d+\.png: its mask has the value 7, which is no class.*masks/\d+\.png"):
        made(tmp_path, classes={"field": 0, "cow": 90}, ignore=None)
    for classes, ignore in ((["a"], None), ({"a": 0, "b": 0}, None), ({"a": 0, "b": 300}, None), (["a", "b"], 1)):
        with pytest.raises(ValueError, match=r"classes|ignore=1"):
            Meaning.of(classes, ignore)


def test_binary_masks_of_255_are_told_of(tmp_path):
    _, masks = folder(tmp_path)
    for number, mask in enumerate(masks):
        save(tmp_path / "masks" / f"{number}.png", mask * 255)
    with pytest.raises(ValueError, match="2 to 255 different values besides data.ignore=255; they have 0"):
        made(tmp_path)
    assert made(tmp_path, ignore=None).schema["classes"] == ["0", "255"]


def test_values_that_training_has_not_are_ignored_and_counted(tmp_path):
    folder(tmp_path, 8, split="train")
    _, masks = folder(tmp_path, 5, split="val", seed=1)
    masks[2, :2, :3] = 9
    save(tmp_path / "val" / "masks" / "2.png", masks[2])
    module = made(tmp_path, test_share=0.0)
    assert (module.tensors["val"]["target"] == IGNORED).sum() == 6
    assert "6 pixels of 1 masks (val) have values that training has not: ignored" in module.notes


def broken(root, what):
    images, masks = folder(root, 8)
    path = root / "masks" / "3.png"
    match what:
        case "size":
            save(path, masks[3][:9])
        case "lonely image":
            path.unlink()
        case "lonely mask":
            (root / "images" / "3.png").unlink()
        case "colours":
            save(path, images[3])
        case "jpeg":
            file = io.BytesIO()
            Image.fromarray(masks[3]).save(file, "JPEG")
            path.write_bytes(file.getvalue())
        case "torn":
            path.write_bytes(path.read_bytes()[:60])
        case "text":
            path.write_text("mask")
        case "torn image":
            (root / "images" / "3.png").write_bytes((root / "images" / "3.png").read_bytes()[:300])
        case "16 bits":
            Image.fromarray(masks[3].astype(np.uint16) * 300).save(path)


BROKEN = {
    "size": r"images/3.png: its mask has 9 x 20 pixels, and it has 16 x 20",
    "lonely image": r"images/3.png: there is no mask of this image",
    "lonely mask": r"masks/3.png: there is no image of this mask",
    "colours": r"images/3.png: its mask has colours, of RGB.*masks/3.png",
    "jpeg": r"images/3.png: its mask is a JPEG",
    "torn": r"images/3.png: its mask cannot be decoded",
    "text": r"images/3.png: its mask is no image",
    "torn image": r"images/3.png: it cannot be decoded",
    "16 bits": r"images/3.png: its mask has the value 300",
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_wrong_is_told_with_the_file_or_left_out_and_counted(tmp_path, what):
    broken(tmp_path, what)
    with pytest.raises(ValueError, match=BROKEN[what]):
        made(tmp_path)
    module = made(tmp_path, unreadable="skip")
    assert sum(total(module).values()) == 7
    assert any("left out" in note and "3.png" in note for note in module.notes)


def test_folders_without_images_and_pictures_that_are_too_small_are_told(tmp_path):
    (tmp_path / "empty" / "images").mkdir(parents=True)
    with pytest.raises(ValueError, match="there are no images in a folder 'images'"):
        made(tmp_path / "empty")
    for number in range(4):
        for kind in ("images", "masks"):
            save(tmp_path / "tiny" / kind / f"{number}.png", np.full((1, 1), number % 2, np.uint8))
    with pytest.raises(ValueError, match="images of 1 x 1 pixels are too small"):
        made(tmp_path / "tiny")
    module = made(tmp_path / "tiny", image_size=16, val_share=0.0, test_share=0.0)
    assert module.tensors["train"]["target"].shape == (4, 16, 16)
    assert any("of one pixel" in note for note in module.notes)


def test_a_suffix_of_masks_and_names_that_collide(tmp_path):
    folder(tmp_path, 6)
    for path in list((tmp_path / "masks").iterdir()):
        path.rename(path.with_stem(f"{path.stem}_mask"))
    assert sum(total(made(tmp_path, mask_suffix="_mask")).values()) == 6
    with pytest.raises(ValueError, match="there is no mask of this image"):
        made(tmp_path)
    shutil.copy(tmp_path / "images" / "3.png", tmp_path / "images" / "3.bmp")
    with pytest.raises(ValueError, match="have one name"):
        made(tmp_path, mask_suffix="_mask")


def test_what_lies_beside_the_folders_is_counted(tmp_path):
    folder(tmp_path, 6)
    shutil.copy(tmp_path / "images" / "3.png", tmp_path / "loose.png")
    (tmp_path / "masks" / "notes.txt").write_text("by hand")
    notes = made(tmp_path).notes
    assert any(note.startswith("1 images of") and "lie in no folder" in note for note in notes)
    assert any(note.startswith("1 files of") and "notes.txt" in note for note in notes)


def test_a_table_names_or_holds_images_and_masks(tmp_path):
    folder(tmp_path)
    names = {kind: [f"{kind}s/{number}.png" for number in range(NUM)] for kind in ("image", "mask")}
    pa.parquet.write_table(pa.table(names), tmp_path / "paths.parquet")
    data = {kind: [(tmp_path / name).read_bytes() for name in of] for kind, of in names.items()}
    pa.parquet.write_table(pa.table(data), tmp_path / "bytes.parquet")
    common = {"val_path": None, "test_path": None, "image": "image", "mask": "mask", "image_root": None}
    common |= {"split_column": None, "splits": None, "classes": ["ground", "thing"], "ignore": 255}
    by_path, by_bytes = (made(tmp_path / f"{kind}.parquet", MaskTable, **common) for kind in ("paths", "bytes"))
    for split in ("train", "val", "test"):
        for name in ("image", "target"):
            assert torch.equal(by_path.tensors[split][name], by_bytes.tensors[split][name])
    (tmp_path / "masks" / "5.png").unlink()
    with pytest.raises(ValueError, match=r"row 6.*there is no such file"):
        made(tmp_path / "paths.parquet", MaskTable, **common)


def test_other_data_are_read_by_the_schema(tmp_path):
    folder(tmp_path / "own")
    module = made(tmp_path / "own", classes=["ground", "thing"])
    images, masks = folder(tmp_path / "other", 5, seed=3)
    tensors = module.load_other(str(tmp_path / "other"), module.schema)
    names = [Path(name).stem for name in module.names["test"]]
    for place, name in enumerate(names):
        np.testing.assert_array_equal(tensors["image"][place], images[int(name)])
        np.testing.assert_array_equal(tensors["target"][place], masks[int(name)])
    (batch,) = list(module.iter_other(str(tmp_path / "other"), module.schema))
    assert batch[0]["image"].to_pylist() == [f"images/{number}.png" for number in range(5)]
    np.testing.assert_array_equal(batch[1]["image"], images)
    raw = module.raw_inputs("val", 3)
    assert raw["image"].shape == (3, 16, 20, 3)
    assert module.encode_raw(raw)["image"].is_contiguous()


def test_scenes_are_the_same_for_all_seeds_and_need_no_split():
    options = {"num_train": 6, "num_val": 2, "num_test": 3, "size": 32, "scene_seed": 0, **OPTIONS}
    options |= {"val_share": 0.0, "test_share": 0.0}
    one, other = (SegmentationScenes(**{**options, "seed": seed}) for seed in (0, 1))
    one.setup()
    other.setup()
    assert total(one) == {"train": 6, "val": 2, "test": 3}
    assert one.schema["classes"] == ["ground", *"0123456789"]
    assert one.fingerprint == other.fingerprint
    assert 0 < (one.tensors["train"]["target"] > 0).float().mean() < 0.5


def test_instances_of_pedestrians_are_one_class(tmp_path):
    images, masks = pictures(8)
    masks[:, 12:, 15:] = 2
    for number in range(8):
        save(tmp_path / "PNGImages" / f"P{number}.png", images[number])
        save(tmp_path / "PedMasks" / f"P{number}_mask.png", masks[number])
    module = made(tmp_path, PennFudanMasks)
    assert module.schema["classes"] == ["ground", "pedestrian"]
    assert (module.tensors["train"]["target"][:, 12:, 15:] == 1).all()
    (tmp_path / "PedMasks" / "P3_mask.png").unlink()
    with pytest.raises(ValueError, match=r"there is no PedMasks/P3_mask.png"):
        made(tmp_path, PennFudanMasks)


BOX = [2, 3, 10, 3, 10, 9, 2, 9]


def coco(root, objects, *, num=8, size=(16, 20)):
    images, _ = pictures(num, size=size)
    root.mkdir(exist_ok=True)
    for number, picture in enumerate(images):
        save(root / f"{number}.png", picture)
    given = {
        "images": [{"id": n, "file_name": f"{n}.png", "height": size[0], "width": size[1]} for n in range(num)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"id": n * 10 + k, "image_id": n, "category_id": 1, "bbox": [0, 0, 1, 1], **one}
            for n in range(num)
            for k, one in enumerate(objects)
        ],
    }
    (root / "annotations.json").write_text(json.dumps(given))
    return root / "annotations.json"


def painted(root, objects, **options):
    module = made(coco(root, objects, **options), CocoMasks, val_path=None, test_path=None, image_root=None)
    return module, module.tensors["train"]["target"][0].numpy()


def test_polygons_are_painted_and_the_smaller_object_is_in_front(tmp_path):
    small = {"segmentation": [[4, 4, 7, 4, 7, 7, 4, 7]], "category_id": 2}
    module, mask = painted(tmp_path, [small, {"segmentation": [BOX]}])
    expected = np.zeros((16, 20), np.uint8)
    expected[3:9, 2:10] = 1
    expected[4:7, 4:7] = 2
    assert module.schema["classes"] == ["background", "cat", "dog"]
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("packed", [False, True])
def test_run_lengths_are_columns(tmp_path, packed):
    where = np.zeros((16, 20), bool)
    where[3:9, 2:10] = True
    flat = np.concatenate([[False], where.T.ravel(), [False]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    runs = np.diff(np.concatenate([[0], edges, [320]])).tolist()
    counts = pack(runs) if packed else runs
    speck = {"segmentation": [[0, 0] * 3], "category_id": 2}
    _, mask = painted(tmp_path, [{"segmentation": {"size": [16, 20], "counts": counts}}, speck])
    np.testing.assert_array_equal(mask == 1, where)


def pack(runs):
    """COCO's packed run lengths, by its published description."""
    text = ""
    for place, run in enumerate(runs):
        value, more = run - (runs[place - 2] if place > 2 else 0), True
        while more:
            bits, value = value & 31, value >> 5
            more = value != -1 if bits & 16 else value != 0
            text += chr((bits | 32 if more else bits) + 48)
    return text


def test_polygons_outside_are_counted_and_broken_ones_told_with_the_file(tmp_path):
    module, mask = painted(tmp_path / "out", [{"segmentation": [[15, 3, 40, 3, 40, 9, 15, 9]]}])
    assert mask[5, 17] == 1
    assert any("painted as far as its polygons lie within it" in note for note in module.notes)
    for number, (wrong, rule) in enumerate(
        [
            ([[1, 2, 3, 4]], "a polygon must have 3 points or more"),
            ([[1, 2, 3, 4, 5, "x"]], "a polygon must be numbers"),
            (None, "segmentation must be polygons or run lengths"),
            ({"size": [16, 20], "counts": [3, 4]}, "run lengths must add up to 320 pixels, got 7"),
            ({"size": [9, 9], "counts": [81]}, r"run lengths must be of \[16, 20\]"),
        ]
    ):
        with pytest.raises(ValueError, match=rf"\d\.png: object 1 \(cat\): {rule}"):
            painted(tmp_path / f"wrong{number}", [{"segmentation": wrong}])


def test_an_annotation_of_another_size_than_its_image_is_told(tmp_path):
    path = coco(tmp_path, [{"segmentation": [BOX]}])
    save(tmp_path / "3.png", pictures(1, size=(17, 20))[0][0])
    with pytest.raises(ValueError, match=r"3.png: it has 17 x 20 pixels, its annotation 16 x 20"):
        made(path, CocoMasks, val_path=None, test_path=None, image_root=None, image_size=16)


def test_file_names_may_be_absolute_and_start_from_another_folder(tmp_path):
    path = coco(tmp_path / "photos", [{"segmentation": [BOX]}])
    given = json.loads(path.read_text())
    given["images"][0]["file_name"] = str(tmp_path / "photos" / "0.png")
    moved = tmp_path / "annotations.json"
    moved.write_text(json.dumps(given))
    root = str(tmp_path / "photos")
    module = made(moved, CocoMasks, val_path=None, test_path=None, image_root=root)
    beside = made(path, CocoMasks, val_path=None, test_path=None, image_root=None)
    assert torch.equal(module.tensors["train"]["image"], beside.tensors["train"]["image"])
