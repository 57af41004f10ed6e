"""What lies in a folder of images, also what file systems do not tell of by themselves."""

import os
from pathlib import Path

import pytest
from PIL import Image

from datamodules.vision.files import files_in


def test_links_to_nothing_are_images_that_cannot_be_read(tmp_path):
    (tmp_path / "set/cat").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "set/cat/one.png")
    (tmp_path / "set/cat/lost.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "set/cat/lost.txt").symlink_to(tmp_path / "gone.txt")
    files = files_in(str(tmp_path / "set"))
    assert sorted(files.images) == ["cat/lost.png", "cat/one.png"]
    assert files.others == []
    source = files.source("set", ["cat/one.png", "cat/lost.png"])
    assert source.read(0)
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        source.read(1)


def test_names_that_are_not_utf8_are_named(tmp_path):
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/0\xff.png")).touch()
    with pytest.raises(ValueError, match=rf"{tmp_path}: b'0\\xff.png' is not UTF-8: rename it"):
        files_in(str(tmp_path))
