"""A checkpoint is whole or not there."""

import os
import subprocess

import pytest
import torch

from train.checkpoint import AtomicCheckpointIO, is_whole, newest_whole, recent
from train.errors import StorageError
from train.run import run


@pytest.fixture
def content():
    return {"state_dict": {"weight": torch.randn(1000, 20)}}


def test_recent_checkpoints_come_newest_first_and_others_are_not_among_them(tmp_path, content):
    for name in ("step=000000002.ckpt", "step=000000010.ckpt", "best.ckpt", ".step=000000011.ckpt.1.tmp"):
        AtomicCheckpointIO().save_checkpoint(content, tmp_path / name)
    assert [path.name for path in recent(tmp_path)] == ["step=000000010.ckpt", "step=000000002.ckpt"]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_damage_is_noticed(tmp_path, content, damage):
    path = tmp_path / "step=000000001.ckpt"
    AtomicCheckpointIO().save_checkpoint(content, path)
    assert is_whole(path)
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 1
    path.write_bytes(data if damage == "flipped" else data[: len(data) // 2 if damage == "truncated" else 0])
    assert not is_whole(path)
    assert newest_whole(tmp_path) is None


def test_a_failing_write_leaves_the_older_checkpoint_and_nothing_else(tmp_path, content, monkeypatch):
    path = tmp_path / "step=000000001.ckpt"
    AtomicCheckpointIO().save_checkpoint(content, path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match="No space left on device"):
        AtomicCheckpointIO().save_checkpoint(content, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_leaves_the_older_checkpoint_and_says_so(small_disk, content):
    older = small_disk / "step=000000001.ckpt"
    AtomicCheckpointIO().save_checkpoint(content, older)
    big = {"state_dict": {"weight": torch.randn(1000, 1000)}}
    with pytest.raises(
        StorageError, match=r"step=000000002\.ckpt: .*No space left on device.*older checkpoints"
    ) as caught:
        AtomicCheckpointIO().save_checkpoint(big, small_disk / "step=000000002.ckpt")
    assert caught.value.exit_code == 6
    assert newest_whole(small_disk) == older
    assert [path.name for path in small_disk.iterdir()] == [older.name]


@pytest.mark.parametrize("room", [0, 4_096, 40_000])
def test_a_run_on_a_full_disk_ends_with_what_to_do_and_goes_on_when_there_is_room(small_disk, configure, room):
    options = (f"output_dir={small_disk}", "run_id=full", "trainer.max_epochs=2")
    filler = small_disk / "filler"
    filler.write_bytes(b"0" * (1_000_000 - room))
    with pytest.raises(StorageError, match=r"No space left on device.*make room") as caught:
        run(configure(*options))
    assert caught.value.exit_code == 6
    filler.unlink()
    assert (run(configure(*options)).folder / "result.json").exists()


def test_a_run_folder_on_a_read_only_disk_is_a_storage_error(small_disk, configure):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(StorageError, match=r"cannot write the run folder .*Read-only file system.* Set output_dir"):
        run(configure(f"output_dir={small_disk}"))
