"""Boxes out of every format, scaled with their pictures and split; what is wrong with them is told."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from datamodules.coco import read_coco
from datamodules.detection.own import (
    DetectionCoco,
    DetectionPennFudan,
    DetectionTable,
    DetectionVoc,
    DetectionYolo,
)
from datamodules.detection.scenes import Scenes

OPTIONS = {
    "val_share": 0.2,
    "test_share": 0.2,
    "image_size": [32, 64],
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
PLACES = {"val_path": None, "test_path": None, "image_root": None}
COCO = {**PLACES, "masks": False}
TABLE = {**PLACES, "image": "file", "objects": "objects", "split_column": None, "splits": None}
NAMES = ("cat", "dog")
HEIGHT, WIDTH = 40, 50
NUM = 20
SHARED = Path(os.environ.get("FULLCYCLE_DATA") or Path(__file__).parents[3] / "shared" / "data")


def truth(number):
    """Objects of a picture: label and box in whole pixels; every fifth has none."""
    if number % 5 == 4:
        return []
    return [(NAMES[(number + place) % 2], [4 + place, 6, 20 + number, 30 - place]) for place in range(1 + number % 2)]


def save(folder, name, number=0, size=(HEIGHT, WIDTH)):
    path = Path(folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (*size, 3)).astype(np.uint8)).save(path)
    return path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def coco_of(folder, num=NUM):
    annotations = [
        {
            "image_id": 7 * number,
            "category_id": 3 + NAMES.index(label),
            "bbox": [left, top, right - left, bottom - top],
        }
        for number in range(num)
        for label, (left, top, right, bottom) in truth(number)
    ]
    size = {"height": HEIGHT, "width": WIDTH}
    images = [{"id": 7 * number, "file_name": f"{number}.png", **size} for number in range(num)]
    categories = [{"id": 3 + place, "name": name} for place, name in enumerate(NAMES)]
    for number in range(num):
        save(folder, f"{number}.png", number)
    content = {"images": images, "annotations": annotations, "categories": categories}
    write(folder / "all.json", json.dumps(content))
    return content


def yolo_of(folder, num=NUM):
    for number in range(num):
        save(folder, f"images/{number}.png", number)
        lines = []
        for label, (left, top, right, bottom) in truth(number):
            centre = f"{(left + right) / 2 / WIDTH} {(top + bottom) / 2 / HEIGHT}"
            lines.append(f"{NAMES.index(label)} {centre} {(right - left) / WIDTH} {(bottom - top) / HEIGHT}")
        write(folder / f"labels/{number}.txt", "\n".join(lines))
    write(folder / "data.yaml", "names: [cat, dog]\n")


def voc_of(folder, num=NUM):
    for number in range(num):
        save(folder, f"JPEGImages/{number}.png", number)
        objects = "".join(
            f"<object><name>{label}</name><bndbox><xmin>{left + 1}</xmin><ymin>{top + 1}</ymin><xmax>{right}</xmax>"
            f"<ymax>{bottom}</ymax></bndbox></object>"
            for label, (left, top, right, bottom) in truth(number)
        )
        write(folder / f"Annotations/{number}.xml", f"<annotation>{objects}</annotation>")


def table_of(folder, num=NUM):
    for number in range(num):
        save(folder, f"{number}.png", number)
    objects = [json.dumps([{"label": label, "box": box} for label, box in truth(number)]) for number in range(num)]
    pa.parquet.write_table(
        pa.table({"file": [f"{number}.png" for number in range(num)], "objects": objects}), folder / "t.parquet"
    )


def penn_fudan_of(folder, num=NUM):
    for number in range(num):
        save(folder, f"JPEGImages/P{number:02d}.jpg", number)
        save(folder, f"PedMasks/P{number:02d}_mask.png", number)
        lines = [f'Image filename : "PNGImages/P{number:02d}.png"', f"Objects with ground truth : {len(truth(number))}"]
        for place, (_, (left, top, right, bottom)) in enumerate(truth(number), start=1):
            corners = f"({left + 1}, {top + 1}) - ({right}, {bottom})"
            lines.append(f'Bounding box for object {place} "PASpersonWalking" (Xmin, Ymin) - (Xmax, Ymax) : {corners}')
        write(folder / f"Annotation/P{number:02d}.txt", "\n".join(lines))


def coco(folder, **more):
    return DetectionCoco(path=f"{folder}/all.json", **{**COCO, **OPTIONS, **more})


def yolo(folder, **more):
    return DetectionYolo(path=str(folder), **{**OPTIONS, **more})


def voc(folder, **more):
    return DetectionVoc(path=str(folder), **{**OPTIONS, **more})


def table(folder, **more):
    return DetectionTable(path=f"{folder}/t.parquet", **{**TABLE, **OPTIONS, **more})


def penn_fudan(folder, **more):
    return DetectionPennFudan(path=str(folder), num_test=4, split_seed=0, masks=False, **{**OPTIONS, **more})


FORMATS = {
    "coco": (coco_of, coco),
    "yolo": (yolo_of, yolo),
    "voc": (voc_of, voc),
    "table": (table_of, table),
    "penn_fudan": (penn_fudan_of, penn_fudan),
}


def number_of(name):
    return int(re.findall(r"(\d+)\.\w+$", name)[0])


def ready(datamodule):
    datamodule.setup()
    return datamodule


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_boxes_scaled_with_their_pictures(kind, tmp_path):
    writer, make = FORMATS[kind]
    writer(tmp_path)
    data = ready(make(tmp_path))
    seen = set()
    for split, tensors in data.tensors.items():
        for row, name in enumerate(data.names[split]):
            number = number_of(name)
            seen.add(number)
            is_there = tensors["target"][row] >= 0
            labels = [data.schema["classes"][label] for label in tensors["target"][row][is_there]]
            assert labels == [("pedestrian" if kind == "penn_fudan" else label) for label, _ in truth(number)]
            expected = torch.tensor([box for _, box in truth(number)]).reshape(-1, 4) * torch.tensor(
                [64 / 50, 32 / 40] * 2
            )
            torch.testing.assert_close(tensors["boxes"][row][is_there], expected, atol=1e-4, rtol=0)
            assert tensors["size"][row].tolist() == [HEIGHT, WIDTH]
            assert tensors["image"].shape[1:] == (32, 64, 3)
    assert seen == set(range(NUM))
    assert min(len(data.names[split]) for split in ("train", "val", "test")) > 0


def test_other_data_are_read_by_the_finished_runs_schema_and_predicted_in_their_own_order(tmp_path):
    table_of(tmp_path / "a")
    coco_of(tmp_path / "b")
    yolo_of(tmp_path / "c")
    data = ready(FORMATS["table"][1](tmp_path / "a"))
    for place in ("a/t.parquet", "b/all.json", "c"):
        tensors = data.load_other(str(tmp_path / place), data.schema)
        assert (tensors["target"] >= 0).sum() == sum(len(truth(number)) for number in range(NUM))
    ((batch, inputs),) = [
        pair for pair in data.iter_other(str(tmp_path / "a/t.parquet"), data.schema) if pair[0].num_rows
    ]
    first = np.asarray(
        Image.open(tmp_path / "a" / batch["file"][0].as_py()).resize((64, 32), Image.Resampling.BILINEAR)
    )
    assert np.array_equal(inputs["image"][0].numpy(), first)
    assert inputs["size"].tolist() == [[HEIGHT, WIDTH]] * NUM


def test_boxes_are_cut_to_their_images_and_those_without_area_left_out_with_a_count(tmp_path):
    content = coco_of(tmp_path)
    content["annotations"] += [
        {"image_id": 0, "category_id": 3, "bbox": [30, 30, 100, 100]},
        {"image_id": 0, "category_id": 3, "bbox": [5, 5, 0, 9]},
        {"image_id": 0, "category_id": 3, "bbox": [200, 5, 10, 10]},
        {"image_id": 99, "category_id": 3, "bbox": [1, 1, 1, 1]},
        {"image_id": 0, "category_id": 3, "bbox": [1, 1, 20, 20], "iscrowd": 1, "segmentation": {"counts": [1]}},
    ]
    write(tmp_path / "all.json", json.dumps(content))
    data = ready(FORMATS["coco"][1](tmp_path))
    notes = "\n".join(data.notes)
    assert "2 boxes reach out of their images: cut" in notes
    assert "2 boxes have no area within their images (such as in 0.png): left out" in notes
    assert "1 annotations of" in notes
    split = next(split for split in data.names if "0.png" in data.names[split])
    row = data.names[split].index("0.png")
    is_there = data.tensors[split]["target"][row] >= 0
    assert is_there.sum() == len(truth(0)) + 2
    assert data.tensors[split]["boxes"][row][is_there].amax(dim=0)[2:].tolist() == [64.0, 32.0]
    assert data.tensors[split]["crowd"][row].sum() == 1


def test_what_has_no_partner_and_what_training_has_not_seen_is_counted(tmp_path):
    for split, num in (("train", 9), ("valid", 6)):
        yolo_of(tmp_path / split, num)
        (tmp_path / split / "data.yaml").unlink()
    write(tmp_path / "valid/labels/0.txt", "17 0.5 0.5 0.2 0.2")
    write(tmp_path / "train/labels/lost.txt", "0 0.5 0.5 0.2 0.2")
    (tmp_path / "train/labels/3.txt").unlink()
    write(tmp_path / "train/labels/2.txt", "1 0.1 0.1 0.5 0.1 0.5 0.3 0.1 0.3")  # a polygon
    data = ready(FORMATS["yolo"][1](tmp_path))
    notes = "\n".join(data.notes)
    assert "1 images of" in notes
    assert "have no text file (such as train/images/3.png): nothing is in them" in notes
    assert "1 text files of" in notes
    assert "1 objects of val images have a label that training has not ('17'): left out" in notes
    assert data.schema["classes"] == ["0", "1"]
    assert len(data.names["val"]) == 6


BROKEN = {
    "yolo line": ("yolo", "labels/1.txt", "0 0.5 0.5 0.2", r"1\.txt, line 1: it must be CLASS X Y WIDTH HEIGHT"),
    "yolo pixels": ("yolo", "labels/1.txt", "\n0 25 20 10 10", r"1\.txt, line 2: places must be shares"),
    "yolo class": ("yolo", "labels/1.txt", "5 .5 .5 .1 .1", r"the class must be one of 0 to 1, got '5 .5 .5 .1 .1'"),
    "yolo names": ("yolo", "data.yaml", "names: 3", r"data\.yaml: names must be a list"),
    "yolo bare class": ("yolo", "classes.txt", "cat\n\ndog\n", r"classes\.txt, line 2: each line must name a class"),
    "yolo names by parts": ("yolo", "data.yaml", "names: {0: cat, 0.5: dog}", r"data\.yaml: names must be a list"),
    "yolo list": ("yolo", "train.txt", "images/0.png\nimages/99.png", r"train\.txt, line 2: there is no such image"),
    "yolo no train": (
        "yolo",
        "data.yaml",
        "names: [cat, dog]\ntrain: nowhere",
        r"data\.yaml must name training images",
    ),
    "voc encoding": (
        "voc",
        "Annotations/1.xml",
        '<?xml version="1.0" encoding="klingon"?><a/>',
        r"1\.xml: it must be XML",
    ),
    "voc difficult": (
        "voc",
        "Annotations/1.xml",
        "<a><object><name>x</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
        "<difficult>perhaps</difficult></object></a>",
        r"1\.xml, object 1: difficult must be 0 or 1, got 'perhaps'",
    ),
    "voc size": (
        "voc",
        "Annotations/1.xml",
        "<a><size><width>500</width><height>40</height></size></a>",
        r"1\.png has 40 x 50 pixels, its annotation 40 x 500",
    ),
    "voc no train": ("voc", "ImageSets/Main/val.txt", "1", r"there are lists of val and none called train\.txt"),
    "voc xml": ("voc", "Annotations/1.xml", "<annotation>\n<object>", r"1\.xml, line 2: it must be XML"),
    "voc number": (
        "voc",
        "Annotations/1.xml",
        "<a><object><name>x</name><bndbox><xmin>two</xmin></bndbox></object></a>",
        r"1\.xml, object 1: xmin must be a number, got 'two'",
    ),
    "coco json": ("coco", "all.json", '{"images": [,', r"all\.json, line 1, column 13: it must be JSON"),
    "coco list": ("coco", "all.json", '{"images": []}', r"it must have a list 'annotations'"),
    "coco empty": ("coco", "all.json", '{"images": [], "annotations": [], "categories": []}', r"it lists no images"),
    "penn box": (
        "penn_fudan",
        "Annotation/P01.txt",
        "Objects with ground truth : 2",
        r"P01\.txt: the boxes must be as many as the objects that it says, 2; they are 0",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_named_with_file_place_rule_and_value(name, tmp_path):
    kind, file, text, message = BROKEN[name]
    writer, make = FORMATS[kind]
    writer(tmp_path, 5)
    if file == "classes.txt":
        (tmp_path / "data.yaml").unlink()
    write(tmp_path / file, text)
    with pytest.raises(ValueError, match=message):
        make(tmp_path).setup()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"image_id": 0, "category_id": 9, "bbox": [1, 1, 2, 2]}, r"annotations\[0\]: category_id must be among"),
        ({"image_id": 0, "category_id": 3, "bbox": [1, 1, -2, 2]}, r"bbox must be \[left, top, width, height\]"),
        ({"image_id": 0, "category_id": 3, "bbox": [1, 1, 2]}, r"got \[1, 1, 2\]"),
        ({"image_id": 0, "category_id": 3, "bbox": [1, 1, 2, 10**400]}, r"bbox must be \[left, top, width, height\]"),
        ({"image_id": 0, "category_id": 3, "bbox": [1, 1, 2, 2], "iscrowd": "0"}, r"iscrowd must be 0 or 1, got '0'"),
        ({"image_id": "0", "category_id": 3, "bbox": [1, 1, 2, 2]}, r"no image_id is the id of an image \(such as '0'"),
        ({"category_id": 3, "bbox": [1, 1, 2, 2]}, r"image_id must be a text or a whole number, got None"),
    ],
)
def test_a_broken_annotation_of_coco_is_named(entry, message, tmp_path):
    content = coco_of(tmp_path, 1)
    write(tmp_path / "all.json", json.dumps({**content, "annotations": [entry]}))
    with pytest.raises(ValueError, match=message):
        read_coco(str(tmp_path / "all.json"), [])


def test_a_category_has_an_id_of_its_own(tmp_path):
    content = coco_of(tmp_path, 1)
    content["categories"].append({"id": 4, "name": "cow"})
    write(tmp_path / "all.json", json.dumps(content))
    with pytest.raises(ValueError, match=r"categories\[2\]: id must be a category's own; 4 is that of two"):
        read_coco(str(tmp_path / "all.json"), [])


def lines(numbers, form):
    return "".join(form.format(number) + "\n" for number in numbers)


@pytest.mark.parametrize(
    ("told", "lists"),
    [
        ("names: [cat, dog]\ntrain: one.txt\nval: /gone/set/two.txt\n", ("one.txt", "two.txt")),
        ("names: [cat, dog]\n", ("train.txt", "val.txt")),
    ],
)
def test_lists_of_yolo_name_the_splits(told, lists, tmp_path):
    yolo_of(tmp_path)
    write(tmp_path / "data.yaml", told)
    write(tmp_path / lists[0], lines(range(12), "./images/{}.png"))
    write(tmp_path / lists[1], lines(range(10, 16), "/home/somebody/set/images/{}.png"))
    data = ready(yolo(tmp_path, test_share=0.0))
    assert sorted(map(number_of, data.names["train"])) == list(range(12))
    assert sorted(map(number_of, data.names["val"])) == list(range(12, 16))
    notes = "\n".join(data.notes)
    assert "2 images of" in notes
    assert "are named by train and by val: they train" in notes
    assert "4 images of" in notes


def test_data_yaml_names_folders_of_splits_of_any_name(tmp_path):
    for place, part in enumerate(("images/train2017", "images/val2017")):
        for number in range(8 * place, 8 * place + 8):
            save(tmp_path, f"{part}/{number}.png", number)
            write(tmp_path / f"{part.replace('images', 'labels')}/{number}.txt", "1 .5 .5 .2 .2")
    told = "names: [cat, dog]\ntrain: images/train2017\nval: ../images/val2017\ntest: images/test2017\n"
    write(tmp_path / "coco128.yaml", told)
    data = ready(yolo(tmp_path, test_share=0.0))
    assert sorted(map(number_of, data.names["val"])) == list(range(8, 16))
    assert data.schema["classes"] == ["dog"]
    assert any("names test: 'images/test2017', where there are no images" in note for note in data.notes)


def test_vocs_trainval_trains_where_there_is_no_train(tmp_path):
    voc_of(tmp_path)
    write(tmp_path / "ImageSets/Main/trainval.txt", lines(range(15), "{}"))
    write(tmp_path / "ImageSets/Main/val.txt", lines(range(3), "{}"))
    write(tmp_path / "ImageSets/Main/test.txt", lines(range(15, 20), "{}"))
    names = ready(voc(tmp_path)).names
    found = {split: sorted(map(number_of, own)) for split, own in names.items()}
    assert found == {"train": list(range(3, 15)), "val": [0, 1, 2], "test": list(range(15, 20))}


def test_two_images_do_not_share_a_text_file(tmp_path):
    yolo_of(tmp_path)
    save(tmp_path, "images/3.jpg", 99)
    with pytest.raises(ValueError, match="images/3.jpg and images/3.png share one text file"):
        yolo(tmp_path).setup()


def test_a_folder_without_images_a_missing_image_and_data_without_objects_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for kind in ("yolo", "voc"):
        with pytest.raises(ValueError, match="there are no images"):
            FORMATS[kind][1](tmp_path / "empty").setup()
    coco_of(tmp_path / "lost")
    (tmp_path / "lost/3.png").unlink()
    with pytest.raises(ValueError, match=r"3\.png: there is no such file"):
        FORMATS["coco"][1](tmp_path / "lost").setup()
    yolo_of(tmp_path / "bare", 3)
    for number in range(3):
        write(tmp_path / f"bare/labels/{number}.txt", "")
    with pytest.raises(ValueError, match="images have no objects to learn from"):
        FORMATS["yolo"][1](tmp_path / "bare", val_share=0.0, test_share=0.0).setup()
    with pytest.raises(ValueError, match="image_size must be"):
        FORMATS["yolo"][1](tmp_path / "bare", image_size=8)


def test_masks_beside_vocs_photographs_are_none_and_names_are_files_own(tmp_path):
    voc_of(tmp_path / "whole")
    for number in range(NUM):
        save(tmp_path / "whole", f"SegmentationObject/{number}.png", 100 + number)
    names = ready(voc(tmp_path / "whole")).names
    assert {name.split("/")[0] for own in names.values() for name in own} == {"JPEGImages"}
    save(tmp_path / "whole", "JPEGImages/more/3.png")
    with pytest.raises(ValueError, match="files must have names of their own; .* share one"):
        voc(tmp_path / "whole").setup()


def test_an_annotation_of_another_size_than_its_image_is_refused(tmp_path):
    content = coco_of(tmp_path)
    content["images"][2] |= {"height": 400, "width": 500}
    write(tmp_path / "all.json", json.dumps(content))
    with pytest.raises(ValueError, match=r"2\.png has 40 x 50 pixels, its annotation 400 x 500: its boxes are of"):
        coco(tmp_path).setup()
    content["images"][2] |= {"height": "x", "width": [1]}
    write(tmp_path / "all.json", json.dumps(content))
    with pytest.raises(ValueError, match=r"images\[2\]: height and width must be whole numbers above 0"):
        coco(tmp_path).setup()


def test_another_crowd_is_another_fingerprint_and_validation_without_objects_is_refused(tmp_path):
    content = coco_of(tmp_path)
    before = ready(coco(tmp_path)).fingerprint
    content["annotations"][0]["iscrowd"] = 1
    write(tmp_path / "all.json", json.dumps(content))
    assert ready(coco(tmp_path)).fingerprint != before
    write(tmp_path / "val.json", json.dumps({**content, "images": content["images"][4:5], "annotations": []}))
    with pytest.raises(ValueError, match="none of the 1 val images has an object: there is no mAP"):
        coco(tmp_path, val_path=f"{tmp_path}/val.json").setup()


def test_an_image_of_one_pixel_is_counted(tmp_path):
    yolo_of(tmp_path)
    save(tmp_path, "images/0.png", size=(1, 1))
    assert any("1 images" in note and "of one pixel" in note for note in ready(FORMATS["yolo"][1](tmp_path)).notes)


def test_scenes_come_from_the_cache_a_second_time(monkeypatch):
    options = {
        **OPTIONS,
        "image_size": 48,
        "num_train": 6,
        "num_val": 3,
        "num_test": 3,
        "scene_seed": 4,
        "masks": False,
    }
    first = ready(Scenes(**options))
    monkeypatch.setattr("datamodules.scenes.scenes", None)  # not composed again
    again = ready(Scenes(**options))
    assert first.fingerprint == again.fingerprint
    assert torch.equal(first.tensors["train"]["boxes"], again.tensors["train"]["boxes"])
    assert {split: len(names) for split, names in again.names.items()} == {"train": 6, "val": 3, "test": 3}


@pytest.mark.skipif(not (SHARED / "vision_pennfudan").is_dir(), reason="needs Penn-Fudan in FULLCYCLE_DATA")
def test_penn_fudan_has_its_170_images_and_423_pedestrians():
    options = {**OPTIONS, "image_size": 32, "num_test": 34, "split_seed": 0, "masks": False}
    data = ready(DetectionPennFudan(path=str(SHARED / "vision_pennfudan"), **options))
    assert sum((tensors["target"] >= 0).sum() for tensors in data.tensors.values()) == 423
    assert len(data.names["test"]) == 34
    assert sum(map(len, data.names.values())) == 170
