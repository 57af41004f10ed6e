"""Pictures are decoded once, split by a hash of their pixels and batched by index; what is wrong with them is told."""

import json
import logging
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.fs
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from datamodules.vision import decoded as decoding
from datamodules.vision.digits import Digits
from datamodules.vision.folder import ImageFolder
from datamodules.vision.table import ImageTable

OPTIONS = {
    "val_share": 0.2,
    "test_share": 0.2,
    "image_size": None,
    "decode": "once",
    "most_pixels": 1_000_000,
    "unreadable": "error",
    "batch_size": 16,
    "batches_per_call": 2,
    "flip": False,
    "translate": 0,
    "policy": "none",
    "num_ops": 2,
    "magnitude": 9,
    "cutout": 0,
    "mixup": 0.0,
    "cutmix": 0.0,
    "class_weights": "none",
    "seed": 0,
}
TABLE = {
    "val_path": None,
    "test_path": None,
    "image": "image",
    "label": "label",
    "image_root": None,
    "split_column": None,
    "splits": None,
}
CLASSES = ("cat", "dog", "eel")
NUM = 90


def pixels(num=NUM, *, seed=0, size=(6, 8)):
    """Pictures whose brightness is their class: number modulo 3."""
    noise = np.random.default_rng(seed).integers(0, 40, (num, *size, 3))
    return (noise + 80 * (np.arange(num) % 3)[:, None, None, None]).astype(np.uint8)


def save(folder, name, picture):
    path = Path(folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
    return path


def class_folder(folder, pictures=None, *, first=0):
    for number, picture in enumerate(pixels() if pictures is None else pictures, start=first):
        save(folder, f"{CLASSES[number % 3]}/{number}.png", picture)
    return folder


@pytest.fixture
def folder(tmp_path):
    return class_folder(tmp_path / "set")


def as_bytes(pictures, tmp_path):
    return [save(tmp_path, f"bytes/{number}.png", picture).read_bytes() for number, picture in enumerate(pictures)]


def ready(kind, *args, **changed):
    module = kind(*args, **{**OPTIONS, **changed})
    module.setup()
    return module


def of_folder(path, **changed):
    return ready(ImageFolder, path=str(path), **changed)


def of_table(table, path, **changed):
    (pa.csv.write_csv if path.suffix == ".csv" else pa.parquet.write_table)(table, path)
    return ready(ImageTable, path=str(path), **{**TABLE, **changed})


def sizes(module):
    return {split: len(tensors["target"]) for split, tensors in module.tensors.items()}


def noted(module, what):
    return [note for note in module.notes if re.search(what, note)]


def content(module):
    """Pixels and class of each row of all splits, sorted."""
    return sorted(
        (image.tobytes(), module.schema["classes"][target])
        for tensors in module.tensors.values()
        for image, target in zip(tensors["image"].numpy(), tensors["target"], strict=True)
    )


EXPECTED = sorted((picture.tobytes(), CLASSES[number % 3]) for number, picture in enumerate(pixels()))


def test_digits_are_split_alike_each_time_and_none_is_in_two_splits():
    first, again = ready(Digits, val_share=0.1), ready(Digits, val_share=0.1, seed=4)
    assert sum(sizes(first).values()) == 1797
    assert first.schema["classes"] == [str(digit) for digit in range(10)]
    assert first.schema["image_size"] == [8, 8]
    assert first.schema == again.schema
    assert first.fingerprint == again.fingerprint
    pictures = [{row.tobytes() for row in tensors["image"].numpy()} for tensors in first.tensors.values()]
    assert sum(map(len, pictures)) == len(set.union(*pictures))
    for split, tensors in first.tensors.items():
        assert torch.equal(tensors["image"], again.tensors[split]["image"])


def test_a_class_folder_is_read_whole(folder):
    module = of_folder(folder)
    assert content(module) == EXPECTED
    assert sizes(module)["train"] > sizes(module)["test"] > 5
    assert module.schema["classes"] == list(CLASSES)
    assert json.loads(json.dumps(module.schema)) == module.schema
    assert module.summary.startswith("set: 90 images of 6 x 8, ")
    assert module.notes == []
    assert next(iter(module.tensors["train"])) == "image"
    for split, tensors in module.tensors.items():
        for name, target in zip(module.names[split].to_pylist(), tensors["target"], strict=True):
            assert name.startswith(CLASSES[target])


def test_setup_is_done_once(folder):
    module = of_folder(folder)
    tensors = module.tensors
    module.setup("test")
    assert module.tensors is tensors


def test_folders_may_name_the_splits(tmp_path):
    class_folder(tmp_path / "set" / "train", pixels())
    class_folder(tmp_path / "set" / "test", pixels(12, seed=1))
    module = of_folder(tmp_path / "set")
    assert sizes(module)["test"] == 12
    assert sizes(module)["train"] + sizes(module)["val"] == NUM
    class_folder(tmp_path / "set" / "valid", pixels()[:9])
    module = of_folder(tmp_path / "set")
    assert sizes(module) == {"train": NUM, "val": 9, "test": 12}
    assert noted(module, "leakage: 9 of the 9 val images train, too")
    class_folder(tmp_path / "set" / "dev", pixels()[:3])
    with pytest.raises(ValueError, match="dev, test, train, valid name the same split"):
        of_folder(tmp_path / "set")


@pytest.mark.parametrize("kind", ["paths.csv", "paths.parquet", "bytes.parquet", "struct.parquet"])
def test_a_table_names_or_holds_images(folder, tmp_path, kind):
    labels = [CLASSES[number % 3] for number in range(NUM)]
    paths = [f"set/{label}/{number}.png" for number, label in enumerate(labels)]
    images = paths if kind.startswith("paths") else as_bytes(pixels(), tmp_path)
    if kind.startswith("struct"):
        images = [{"bytes": data, "path": path} for data, path in zip(images, paths, strict=True)]
    module = of_table(pa.table({"image": images, "label": labels}), tmp_path / kind)
    assert content(module) == EXPECTED
    assert module.notes == []


def test_paths_start_from_the_root_that_is_given_or_are_whole(folder, tmp_path):
    labels = [CLASSES[number % 3] for number in range(NUM)]
    paths = [f"{label}/{number}.png" for number, label in enumerate(labels)]
    paths[0] = str(folder / paths[0])
    (tmp_path / "elsewhere").mkdir()
    where = tmp_path / "elsewhere" / "t.csv"
    module = of_table(pa.table({"image": paths, "label": labels}), where, image_root=str(folder))
    assert content(module) == EXPECTED


def test_folders_and_tables_on_s3(tmp_path, monkeypatch):
    class_folder(tmp_path / "bucket" / "set")
    bucket = pa.fs.SubTreeFileSystem(str(tmp_path), pa.fs.LocalFileSystem())
    monkeypatch.setattr("datamodules.sources.s3_filesystem", lambda: bucket)
    labels = [CLASSES[number % 3] for number in range(NUM)]
    paths = [f"set/{label}/{number}.png" for number, label in enumerate(labels)]
    paths[0] = f"s3://bucket/{paths[0]}"
    pa.csv.write_csv(pa.table({"image": paths, "label": labels}), tmp_path / "bucket" / "t.csv")
    assert content(of_folder("s3://bucket/set")) == EXPECTED
    assert content(ready(ImageTable, path="s3://bucket/t.csv", **TABLE)) == EXPECTED
    assert content(ready(ImageTable, path="s3://bucket/t.csv", **{**TABLE, "image_root": "s3://bucket"})) == EXPECTED


def test_a_folder_beside_those_of_splits_is_refused_and_a_class_may_be_called_train(tmp_path):
    class_folder(tmp_path / "set" / "train")
    save(tmp_path / "set", "docs/logo.png", pixels()[0])
    save(tmp_path / "set", "train/loose.png", pixels()[0])
    with pytest.raises(ValueError, match="train name splits, and docs beside them none: rename it or move it away"):
        of_folder(tmp_path / "set")
    for number, picture in enumerate(pixels()):
        save(tmp_path / "vehicles", f"{('train', 'car')[number % 2]}/{number}.png", picture)
    assert of_folder(tmp_path / "vehicles").schema["classes"] == ["car", "train"]


def test_splits_by_a_column_and_by_files(tmp_path):
    table = pa.table(
        {"image": as_bytes(pixels(), tmp_path), "label": list(CLASSES) * 30, "part": ["train", "dev", "test"] * 30}
    )
    shuffled = table.set_column(1, "label", pa.array([CLASSES[number // 3 % 3] for number in range(NUM)]))
    assert sizes(of_table(shuffled, tmp_path / "t.parquet", split_column="part")) == dict.fromkeys(sizes_of, 30)
    pa.parquet.write_table(table.slice(0, 12), tmp_path / "val.parquet")
    module = of_table(table, tmp_path / "t.parquet", val_path=str(tmp_path / "val.parquet"), test_share=0.0)
    assert sizes(module) == {"train": NUM, "val": 12, "test": 0}
    assert noted(module, "there are no test images")
    assert module.test_dataloader() == []


sizes_of = ("train", "val", "test")


def test_equal_pictures_are_in_one_split_and_told(tmp_path):
    class_folder(tmp_path / "set", np.concatenate([pixels(), pixels()]))
    module = of_folder(tmp_path / "set")
    assert noted(module, "training images are the same as another one")
    splits = [{row.tobytes() for row in tensors["image"].numpy()} for tensors in module.tensors.values()]
    assert sum(map(len, splits)) == NUM


def test_batches_hold_image_target_and_row(folder):
    module = of_folder(folder)
    call = next(iter(module.train_dataloader()))
    assert len(call) == 2
    for batch in call:
        assert batch["image"].dtype == torch.uint8
        assert torch.equal(batch["image"], module.tensors["train"]["image"][batch["row"]])
        assert torch.equal(batch["target"], module.tensors["train"]["target"][batch["row"]])
    (batch,) = list(module.val_dataloader())
    assert batch["row"].tolist() == list(range(sizes(module)["val"]))
    assert module.transfer_batch_to_device(batch, torch.device("cpu"), 0) is batch
    raw = module.raw_inputs("val", 5)
    assert raw["image"].shape == (5, 6, 8, 3)
    assert torch.equal(module.encode_raw(raw)["image"], module.tensors["val"]["image"][:5])


def test_statistics_are_of_the_training_pictures(folder):
    module = of_folder(folder)
    values = module.tensors["train"]["image"].double() / 255
    np.testing.assert_allclose(module.schema["mean"], values.mean(dim=(0, 1, 2)), atol=1e-8)
    np.testing.assert_allclose(module.schema["std"], values.flatten(0, 2).std(dim=0, correction=0), atol=1e-8)
    normal = (values - torch.tensor(module.schema["mean"])) / torch.tensor(module.schema["std"])
    patches = torch.nn.functional.unfold(normal.permute(0, 3, 1, 2), 2).permute(1, 0, 2).flatten(1)
    np.testing.assert_allclose(module.schema["patches"]["covariance"], np.cov(patches.numpy(), bias=True), atol=1e-7)


def test_images_of_many_sizes_are_resized(tmp_path):
    class_folder(tmp_path / "set")
    save(tmp_path / "set", "cat/big.png", pixels(1, size=(60, 30))[0])
    with pytest.raises(
        ValueError, match=r"images differ in size: cat/0.png has 6 x 8 pixels, cat/big.png 60 x 30; give"
    ):
        of_folder(tmp_path / "set")
    assert of_folder(tmp_path / "set", image_size=5).schema["image_size"] == [5, 5]
    module = of_folder(tmp_path / "set", image_size=[6, 10])
    assert module.schema["image_size"] == [6, 10]
    assert sum(sizes(module).values()) == NUM + 1
    for wrong in ([3, 3], [8], [8, 8, 8], 2):
        with pytest.raises(ValueError, match="image_size must be HEIGHT"):
            of_folder(tmp_path / "set", image_size=wrong)
    class_folder(tmp_path / "tiny", pixels(size=(1, 1)))
    with pytest.raises(ValueError, match="1 x 1 pixels are too small"):
        of_folder(tmp_path / "tiny")


# Other data


def test_other_pictures_are_read_by_the_schema(folder, tmp_path):
    module = of_folder(folder)
    class_folder(tmp_path / "other", pixels(9, seed=2, size=(12, 16)))
    save(tmp_path / "other", "fox/1.png", pixels(1)[0])
    tensors = module.load_other(str(tmp_path / "other"), module.schema)
    assert tensors["image"].shape == (9, 6, 8, 3)
    assert len(module.names["test"]) == 9
    assert noted(module, r"1 images of .*other have a label that training has not \('fox'\): left out")
    (batch,) = list(module.eval_dataloader(tensors))
    assert torch.equal(batch["target"], tensors["target"])
    table = pa.table({"image": as_bytes(pixels(9), tmp_path), "label": list(CLASSES) * 3})
    pa.parquet.write_table(table, tmp_path / "o.parquet")
    assert len(module.load_other(str(tmp_path / "o.parquet"), module.schema)["target"]) == 9


def test_other_pictures_stream_in_their_order(folder, tmp_path):
    module = of_folder(folder)
    table = pa.table({"id": list(range(9)), "image": as_bytes(pixels(9, seed=2), tmp_path)})
    pa.parquet.write_table(table, tmp_path / "o.parquet")
    ((batch, inputs),) = list(module.iter_other(str(tmp_path / "o.parquet"), module.schema))
    assert batch.schema.names == ["id", "image"]
    assert np.array_equal(inputs["image"], pixels(9, seed=2))
    pa.parquet.write_table(table.slice(0, 0), tmp_path / "e.parquet")
    ((batch, inputs),) = list(module.iter_other(str(tmp_path / "e.parquet"), module.schema))
    assert inputs["image"].shape == (0, 6, 8, 3)
    ((batch, inputs),) = list(module.iter_other(str(folder), module.schema))
    assert batch["image"].to_pylist()[0] == "cat/0.png"
    assert np.array_equal(inputs["image"][0], pixels()[0])
    pa.parquet.write_table(table.set_column(1, "image", pa.array([b"x"] * 9)), tmp_path / "w.parquet")
    with pytest.raises(ValueError, match=r"w.parquet: row 1: it is no image.*8 more"):
        list(module.iter_other(str(tmp_path / "w.parquet"), module.schema))


# Cache


def test_pictures_are_decoded_once_into_a_mapped_file(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("FULLCYCLE_CACHE", str(tmp_path / "cache"))
    first = of_folder(folder)
    (file,) = (tmp_path / "cache").glob("images-*.arrow")
    monkeypatch.setattr(decoding, "decode_all", None)  # a second time would fail
    again = of_folder(folder, val_share=0.4)
    assert content(again) == content(first)
    assert any(str(file) in line for line in Path("/proc/self/maps").read_text().splitlines())
    with pytest.raises(TypeError):
        of_folder(folder, image_size=7)


def test_a_changed_file_is_decoded_again(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("FULLCYCLE_CACHE", str(tmp_path / "cache"))
    first = of_folder(folder)
    save(folder, "cat/0.png", pixels(1, seed=7)[0])
    assert content(of_folder(folder)) != content(first)


def test_decoding_holds_few_of_the_pictures_in_memory(tmp_path, monkeypatch):
    monkeypatch.setenv("FULLCYCLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(decoding, "AHEAD", 8)
    side, num = 200, 400
    source = decoding.Source("x", [str(one) for one in range(num)], lambda one: noise_of(one, side), "version")
    tracemalloc.start()
    found = decoding.decoded(source, decoding.How(None, 1_000_000, "error"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < found.pixels.nbytes / 8
    for row in (0, 1, num - 1):
        assert np.array_equal(found.pixels[row], noise_of(found.places[row], side))
    assert np.array_equal(found.hashes, np.sort(found.hashes))


def noise_of(seed, side):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize("damage", ["torn", "empty", "strange"])
def test_a_damaged_file_is_made_again(folder, tmp_path, monkeypatch, caplog, damage):
    monkeypatch.setenv("FULLCYCLE_CACHE", str(tmp_path / "cache"))
    first = of_folder(folder)
    (file,) = (tmp_path / "cache").glob("images-*.arrow")
    body = file.read_bytes()
    file.unlink()  # what is mapped stays
    file.write_bytes({"torn": body[: len(body) // 2], "empty": b"", "strange": b"x" * 5000}[damage])
    assert content(of_folder(folder)) == content(first)
    assert "damaged cache file" in caplog.text
    assert file.read_bytes() == body


def test_without_a_cache_all_works_with_a_warning(folder, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FULLCYCLE_CACHE", str(tmp_path / "file" / "cache"))
    with caplog.at_level(logging.WARNING):
        assert content(of_folder(folder)) == EXPECTED
    assert "not cached" in caplog.text


def test_the_fingerprint_is_of_pixels_and_labels(folder, tmp_path):
    first = of_folder(folder).fingerprint
    assert of_folder(folder, seed=3, flip=True).fingerprint == first
    (folder / "cat" / "0.png").rename(folder / "dog" / "0.png")
    assert of_folder(folder).fingerprint != first


# Bad input


def test_special_pictures_are_counted(folder):
    Image.fromarray(pixels(1, seed=3)[0]).convert("CMYK").save(folder / "cat" / "cmyk.jpg")
    Image.new("RGB", (1, 1)).save(folder / "cat" / "one.png")
    (folder / "readme.txt").write_text("x")
    (folder / "cat" / "Thumbs.db").write_text("x")
    save(folder, "loose.png", pixels(1)[0])
    module = of_folder(folder, image_size=[6, 8])
    assert noted(module, r"1 images of .* are in CMYK, converted")
    assert noted(module, r"1 images of .* are of one pixel")
    assert noted(module, r"1 images of .* lie in no class folder: left out")
    assert noted(module, r"2 files of .* are no images by their names \(such as cat/Thumbs.db\): left out")


def test_unreadable_images_are_named_or_left_out_and_counted(folder):
    (folder / "cat" / "bad.png").write_bytes(b"text")
    (folder / "dog" / "torn.png").write_bytes((folder / "dog" / "1.png").read_bytes()[:60])
    with pytest.raises(
        ValueError, match=r"set: cat/bad.png: it is no image.* \(and 1 more\); mend or remove it, or give"
    ):
        of_folder(folder)
    module = of_folder(folder, unreadable="skip")
    assert content(module) == EXPECTED
    assert noted(module, r"2 images of .* are left out, since they cannot be used: cat/bad.png: it is no image")
    again = of_folder(folder, unreadable="skip")  # out of the cache
    assert noted(again, "2 images of .* are left out")


def test_a_gigantic_image_is_named(folder):
    Image.new("1", (2_000, 2_000)).save(folder / "cat" / "huge.png")
    with pytest.raises(ValueError, match=r"cat/huge.png: it has 2,000 x 2,000 pixels, more than data.most_pixels"):
        of_folder(folder)


def test_rows_and_files_that_do_not_meet_are_told(folder, tmp_path):
    labels = [CLASSES[number % 3] for number in range(NUM)]
    paths = [f"set/{label}/{number}.png" for number, label in enumerate(labels)]
    save(folder, "cat/more.png", pixels(1, seed=9)[0])
    module = of_table(pa.table({"image": paths, "label": labels}), tmp_path / "t.csv")
    assert noted(module, r"1 images beside those of .*t.csv are named by no row \(such as .*cat/more.png\)")
    paths[4] = "set/dog/none.png"
    table = pa.table({"image": paths, "label": labels})
    with pytest.raises(ValueError, match=r"t.csv: row 5, set/dog/none.png: there is no such file; mend"):
        of_table(table, tmp_path / "t.csv")
    module = of_table(table, tmp_path / "t.csv", unreadable="skip")
    assert sum(sizes(module).values()) == NUM - 1
    assert noted(module, "1 images of .* are left out.*no such file")


def test_rows_without_label_are_counted_and_without_image_named(tmp_path):
    table = pa.table({"image": as_bytes(pixels(), tmp_path), "label": [None, "", *(list(CLASSES) * 30)[2:]]})
    module = of_table(table, tmp_path / "t.parquet")
    assert sum(sizes(module).values()) == NUM - 2
    assert noted(module, "2 rows of .* without a label are left out")
    table = table.set_column(0, "image", pa.array([*table["image"].to_pylist()[:-1], None]))
    with pytest.raises(ValueError, match=r"t.parquet, row 90: there is no image in column 'image'"):
        of_table(table, tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="must hold paths or bytes of images; it holds int64"):
        of_table(pa.table({"image": [1, 2], "label": ["a", "b"]}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"column 'picture' is missing"):
        of_table(table, tmp_path / "t.parquet", image="picture")
    with pytest.raises(ValueError, match="must be another column than the image"):
        ImageTable(path="x", **{**TABLE, "label": "image"}, **OPTIONS)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda folder: (folder / "ant").mkdir(), r"set/ant: this class folder holds no images: fill it or remove it"),
        (lambda folder: [path.unlink() for path in folder.rglob("*.png")], "there are no images in class folders"),
        (
            lambda folder: [path.unlink() for path in folder.glob("[de]*/*.png")],
            "dog: this class folder holds no images",
        ),
    ],
)
def test_folders_without_images_are_named(folder, make, told):
    make(folder)
    with pytest.raises(ValueError, match=told):
        of_folder(folder)


def test_places_that_are_none_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder: '/nowhere/x'"):
        of_folder("/nowhere/x")
    with pytest.raises(ValueError, match="cannot read 'ftp://a/b'"):
        of_folder("ftp://a/b")
    for number in range(4):
        save(tmp_path / "loose", f"{number}.png", pixels(4)[number])
    with pytest.raises(ValueError, match="no images in class folders; 4 images lie in it beside no class folder"):
        of_folder(tmp_path / "loose")


def test_one_class_or_shares_without_training_rows_are_refused(tmp_path):
    for number in range(30):
        save(tmp_path / "set", f"cat/{number}.png", pixels()[number])
    with pytest.raises(ValueError, match="must have at least two different values"):
        of_folder(tmp_path / "set")
    with pytest.raises(ValueError, match="val_share"):
        of_folder(tmp_path / "set", val_share=0.6, test_share=0.5)


def test_a_class_that_training_lacks_is_left_out_and_counted(folder):
    save(folder, "fox/1.png", pixels(1, seed=5)[0])
    found = [of_folder(folder, val_share=val) for val in (0.0, 0.3, 0.45)]
    for module in found:
        known = "fox" in module.schema["classes"]
        assert bool(noted(module, r"have a label that training has not \('fox'\)")) is not known
        assert sum(sizes(module).values()) == NUM + known
