"""Pictures that are decoded in every epoch are those that are decoded once, whichever way they are asked for."""

import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.vision import decoded as decoding
from datamodules.vision import undecoded as undecoding
from datamodules.vision.digits import Digits
from datamodules.vision.folder import ImageFolder
from datamodules.vision.undecoded import Undecoded, undecoded

OPTIONS = {
    "val_share": 0.2,
    "test_share": 0.2,
    "image_size": [14, 18],
    "most_pixels": 1_000_000,
    "unreadable": "error",
    "batch_size": 8,
    "batches_per_call": 2,
    "flip": True,
    "translate": 2,
    "cutout": 3,
    "mixup": 1.0,
    "cutmix": 1.0,
    "policy": "trivial",
    "num_ops": 2,
    "magnitude": 9,
    "class_weights": "none",
    "seed": 3,
}
NUM = 80


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FULLCYCLE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path):
    """JPEG files of many sizes, so large that they are decoded at a part of it."""
    drawn = np.random.default_rng(0)
    for number in range(NUM):
        path = tmp_path / "set" / ("cat", "dog")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(drawn.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        coarse.resize((60 + number, 90 - number // 2)).save(path)
    return tmp_path / "set"


def of_folder(path, **changed):
    module = ImageFolder(path=str(path), **{**OPTIONS, **changed})
    module.setup()
    return module


def batches(loader, *, epoch=0):
    loader.set_epoch(epoch)
    return [batch for call in loader for batch in (call if isinstance(call, list) else [call])]


def assert_same(one, other):
    assert len(one) == len(other)
    for own, theirs in zip(one, other, strict=True):
        assert own.keys() == theirs.keys()
        for name, value in own.items():
            assert value == theirs[name] if name == "global_rows" else torch.equal(value, theirs[name]), name


def test_all_that_a_model_and_a_run_see_is_the_same(folder, cache):
    once, always = of_folder(folder, decode="once"), of_folder(folder, decode="always")
    assert isinstance(always.tensors["train"]["image"], Undecoded)
    assert always.schema == once.schema
    assert (always.fingerprint, always.summary, always.notes) == (once.fingerprint, once.summary, once.notes)
    assert always.names["test"] == once.names["test"]
    for epoch in (0, 1):
        pairs = [batches(module.train_dataloader(), epoch=epoch) for module in (once, always)]
        assert_same(*pairs)
    for split in ("val", "test"):
        assert_same(*(batches(module.eval_dataloader(module.tensors[split])) for module in (once, always)))
    assert np.array_equal(always.raw_inputs("test", 5)["image"], once.raw_inputs("test", 5)["image"])
    (index,) = cache.glob("index-of-images-*.arrow")
    (whole,) = cache.glob("images-*.arrow")
    assert index.stat().st_size < whole.stat().st_size / 5


def test_other_pictures_are_the_same_and_leave_no_pixels_in_the_cache(folder, cache):
    once, always = of_folder(folder, decode="once"), of_folder(folder, decode="always")
    own, theirs = (module.load_other(str(folder), module.schema) for module in (once, always))
    assert torch.equal(theirs["image"][:], own["image"])
    assert torch.equal(theirs["target"], own["target"])
    for file in cache.glob("*.arrow"):
        file.unlink()
    ((_, streamed),) = always.iter_other(str(folder), always.schema)
    assert len(streamed["image"]) == NUM
    assert not list(cache.glob("*.arrow"))


def test_two_ranks_and_a_resumed_run_see_what_one_process_sees(folder, monkeypatch):
    module = of_folder(folder, decode="always")
    whole = batches(module.train_dataloader(), epoch=2)

    def of_rank(rank):
        for place in ("datamodules.augment", "datamodules.loading"):
            monkeypatch.setattr(f"{place}.rank_and_world_size", lambda: (rank, 2))
        return batches(module.train_dataloader(), epoch=2)

    for joined, one, two in zip(whole, of_rank(0), of_rank(1), strict=True):
        for name in joined.keys() - {"global_rows"}:
            assert torch.equal(joined[name][0::2], one[name]), name
            assert torch.equal(joined[name][1::2], two[name]), name
    monkeypatch.undo()
    first = module.train_dataloader()
    first.set_epoch(2)
    begun = iter(first)
    seen = next(begun)
    state = first.state_dict()
    resumed = module.train_dataloader()
    resumed.load_state_dict(state)
    assert_same(whole, [*seen, *(batch for call in resumed for batch in call)])


def test_the_next_call_is_decoded_meanwhile_each_picture_once_and_no_thread_stays(folder, monkeypatch):
    module = of_folder(folder, decode="always")
    asked, count = [], threading.active_count()
    monkeypatch.setattr(undecoding, "picture_of", lambda *args: asked.append(args[1]) or decoding.picture_of(*args))
    loader = module.train_dataloader()
    calls = iter(loader)
    next(calls)
    images = loader.tensors["image"]
    assert len(images._coming) == 16
    [future.result() for future in images._coming.values()]
    assert len(asked) == len(set(asked)) == 32
    list(calls)
    assert len(asked) == len(set(asked)) == len(images)
    calls = iter(loader)
    next(calls)
    calls.close()  # as when a sanity check has seen enough
    assert not images._coming
    for thread in threading.enumerate():
        if thread.name.startswith("ThreadPool"):
            thread.join(10)
    assert threading.active_count() == count


def test_pictures_without_files_are_decoded_always_as_well():
    made = [Digits(**{**OPTIONS, "image_size": 12, "decode": decode}) for decode in ("once", "always")]
    for module in made:
        module.setup()
    assert_same(*(batches(module.val_dataloader()) for module in made))


def test_rows_are_indexed_like_those_of_a_tensor(folder):
    once, always = (of_folder(folder, decode=decode).tensors["train"]["image"] for decode in ("once", "always"))
    assert always.shape == tuple(once.shape)
    for rows in (
        0,
        slice(3, 9),
        slice(None),
        torch.tensor([4, 1, 4]),
        np.array([2, 0]),
        torch.tensor([[1, 2], [3, 4]]),
    ):
        assert torch.equal(always[rows], once[rows]), rows
    always.expect(torch.tensor([1, 2]))
    assert torch.equal(always[torch.tensor([2, 5])], once[torch.tensor([2, 5])])
    always.forget()


def test_what_cannot_be_read_is_named_or_left_out(folder):
    (folder / "cat" / "bad.jpg").write_bytes(b"text")
    with pytest.raises(ValueError, match=r"set: cat/bad.jpg: it is no image.*give data.unreadable=skip"):
        of_folder(folder, decode="always")
    module = of_folder(folder, decode="always", unreadable="skip")
    assert sum(len(rows["target"]) for rows in module.tensors.values()) == NUM
    again = of_folder(folder, decode="always", unreadable="skip")  # out of the cache
    assert again.notes == module.notes != []
    with pytest.raises(ValueError, match="images differ in size"):
        of_folder(folder, decode="always", unreadable="skip", image_size=None)


def test_a_file_that_changes_while_a_run_reads_it_is_named(folder):
    module = of_folder(folder, decode="always")
    for path in Path(folder).rglob("*.jpg"):
        path.write_bytes(path.read_bytes()[:80])
    with pytest.raises(ValueError, match=r"/\d+.jpg: .*with data.decode=always images are read in every epoch"):
        batches(module.train_dataloader())


def test_a_pass_over_the_pictures_holds_few_of_them(monkeypatch):
    monkeypatch.setattr(decoding, "AHEAD", 8)
    side, num = 200, 400

    def noise_of(seed):
        return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)

    source = decoding.Source("x", [str(one) for one in range(num)], noise_of)
    tracemalloc.start()
    found = undecoded(source, decoding.How(None, 1_000_000, "error"))
    for first in range(0, num, 20):
        found.pixels.expect(torch.arange(first, first + 20))
        assert np.array_equal(found.pixels[first], noise_of(found.places[first]))
    found.pixels.forget()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < num * side * side * 3 / 5
