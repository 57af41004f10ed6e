"""Image files of one's own, local or on S3: a folder of class folders, or those that a table's column names."""

import os
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs

from datamodules.columns import Column, is_text
from datamodules.csv_files import suffix_of
from datamodules.images import SUFFIXES
from datamodules.schema import require_columns
from datamodules.sources import KINDS, fingerprint, place_of
from datamodules.texts import naming, require_utf8
from datamodules.vision.decoded import Source

ALLOWED = "a folder, local or s3://bucket/prefix"
MISSING = "there is no such file"


@dataclass(frozen=True)
class Files:
    """The files below a folder.

    Attributes:
        filesystem: that they lie in.
        root: the folder there.
        images: of each image file its size and time, by its path below the folder, sorted.
        folders: paths of all folders below the folder.
        others: paths of files that are no images by their names.
    """

    filesystem: pa.fs.FileSystem
    root: str
    images: dict[str, list[int]]
    folders: list[str]
    others: list[str]

    def source(self, where: str, names: Sequence[str]) -> Source:
        """Some of the images, not decoded yet."""

        def read(place: int) -> bytes:
            return read_bytes(self.filesystem, f"{self.root}/{names[place]}")

        # With the folder: archives are unpacked with their times, so that other files may have the same.
        return Source(where, names, read, [self.root, [[name, *self.images[name]] for name in names]])


def read_bytes(filesystem: pa.fs.FileSystem, path: str) -> bytes:
    """All of a file. Raises OSError."""
    try:
        with filesystem.open_input_file(path) as file:
            return bytes(file.read())
    except FileNotFoundError as error:
        raise FileNotFoundError(MISSING) from error


def files_in(uri: str) -> Files:
    """What lies in a folder and below, hidden files left away; links to nothing are images that cannot be read.

    Raises FileNotFoundError, and ValueError where names cannot be.
    """
    filesystem, root = place_of(uri, ALLOWED)
    try:
        if filesystem.get_file_info(root).type != pa.fs.FileType.Directory:
            raise FileNotFoundError(f"no such folder: {uri!r}; give {ALLOWED}")
        lost = _links_to_nothing(root) if isinstance(filesystem, pa.fs.LocalFileSystem) else []
        found = filesystem.get_file_info(pa.fs.FileSelector(root, recursive=True))
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"cannot read {uri!r}: {str(error).splitlines()[0]}") from error
    images: dict[str, list[int]] = {}
    folders, others = [], []
    found += [pa.fs.FileInfo(path, pa.fs.FileType.File, size=0) for path in lost]  # which Arrow does not tell
    for info in sorted(found, key=lambda one: one.path):
        path = info.path.removeprefix(root).lstrip("/")
        if any(part.startswith(".") or part == "__MACOSX" for part in path.split("/")):
            continue
        if info.type == pa.fs.FileType.Directory:
            folders.append(path)
        elif _is_image(path):
            images[path] = [info.size, info.mtime_ns or 0]
        else:
            others.append(path)
    return Files(filesystem, root, images, folders, others)


def _is_image(path: str) -> bool:
    return posixpath.splitext(path)[1].lower() in SUFFIXES


def _links_to_nothing(root: str) -> list[str]:
    """Paths of links to images that are gone. Raises ValueError for a name that is not UTF-8."""
    lost, folders = [], [root]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if any("\ud800" <= letter <= "\udfff" for letter in entry.name):
                    raise ValueError(
                        f"{os.path.dirname(entry.path)}: {os.fsencode(entry.name)!r} is not UTF-8: rename it"
                    )
                if entry.is_dir():
                    folders.append(entry.path)
                elif entry.is_symlink() and _is_image(entry.name) and not os.path.exists(entry.path):
                    lost.append(entry.path)
    return lost


def by_class(uri: str, files: Files, notes: list[str], below: str = "") -> tuple[Source, Column]:
    """Images in class folders and their labels; `below` is a folder of the files that holds the class folders.

    Raises ValueError where there are none, or a class folder has none.
    """
    prefix = f"{below}/" if below else ""
    where = uri.rstrip("/") + (f"/{below}" if below else "")
    own = [path.removeprefix(prefix) for path in files.images if path.startswith(prefix)]
    names = [path for path in own if "/" in path]
    if not names:
        loose = f"; {len(own):,} images lie in it beside no class folder" if own else ""
        raise ValueError(
            f"{where}: there are no images in class folders{loose}; give a folder of images for each class"
        )
    labels = [path.partition("/")[0] for path in names]
    folders = [path.removeprefix(prefix) for path in files.folders if path.startswith(prefix)]
    if empty := sorted({path for path in folders if "/" not in path} - set(labels)):
        raise ValueError(f"{where}/{empty[0]}: this class folder holds no images: fill it or remove it")
    if len(own) > len(names):
        notes.append(f"{len(own) - len(names):,} images of {where} lie in no class folder: left out")
    if others := [path for path in files.others if path.startswith(prefix)]:
        notes.append(f"{len(others):,} files of {where} are no images by their names (such as {others[0]}): left out")
    return files.source(where, [prefix + name for name in names]), pa.array(labels, pa.large_string())


def of_column(uri: str, table: pa.Table, raw: Mapping[str, Any], notes: list[str], rows: Sequence[int]) -> Source:
    """The images of a table's column: bytes, a struct with `bytes`, or paths.

    Raises ValueError where a row has none, or the column holds something else. `rows` are the rows' numbers.
    """
    with naming(uri):
        require_columns(table.schema, [raw["image"]])
    column = table[raw["image"]]
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_struct(column.type) and "bytes" in [field.name for field in column.type.fields]:
        column = pc.struct_field(column, "bytes")
    if column.null_count:
        row = rows[pc.index(column.is_null(), True).as_py()]
        raise ValueError(f"{uri}, row {row}: there is no image in column {raw['image']!r}")
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        names = [f"row {row}" for row in rows]
        version = {"bytes": fingerprint(pa.table({"image": column}))}
        return Source(uri, names, lambda place: column[place].as_py(), version)
    if not is_text(column.type):
        raise ValueError(f"{uri}: column {raw['image']!r} must hold paths or bytes of images; it holds {column.type}")
    require_utf8(column, raw["image"], uri, first_row=rows[0] if len(rows) else 1)
    paths = column.to_pylist()
    names = [f"row {row}, {path}" for row, path in zip(rows, paths, strict=True)]
    return of_paths(uri, paths, raw["image_root"] or folder_of(uri), notes, names)


def of_paths(uri: str, paths: Sequence[str], root: str, notes: list[str], names: Sequence[str] | None = None) -> Source:
    """Files that a table or another file names, by paths that start from `root`; None names them by these paths."""
    start = root.rstrip("/")
    whole = [path if "://" in path or os.path.isabs(path) else f"{start}/{path}" for path in paths]
    places = [place_of(path, "a path, or s3://bucket/key") for path in whole]
    versions: list[list[Any]] = []
    listings: dict[str, dict[str, list[int]]] = {}
    named = {posixpath.normpath(path) for _, path in places}
    for filesystem, path in places:
        folder, _, _ = posixpath.normpath(path).rpartition("/")
        if folder not in listings:
            listings[folder] = _listing(filesystem, folder)
        versions.append([path, *listings[folder].get(posixpath.normpath(path), [])])
    unnamed = sorted(path for listing in listings.values() for path in listing if path not in named)
    if unnamed:
        notes.append(f"{len(unnamed):,} images beside those of {uri} are named by no row (such as {unnamed[0]})")

    def read(place: int) -> bytes:
        return read_bytes(*places[place])

    return Source(uri, list(paths) if names is None else names, read, versions)


def folder_of(uri: str) -> str:
    """The folder that a table lies in; of a folder of tables, itself."""
    whole = uri.rstrip("/")
    return posixpath.dirname(whole) or "." if suffix_of(whole) in KINDS else whole


def _listing(filesystem: pa.fs.FileSystem, folder: str) -> dict[str, list[int]]:
    """Size and time of the images in a folder, by path."""
    selector = pa.fs.FileSelector(folder, allow_not_found=True)
    found = [info for info in filesystem.get_file_info(selector) if info.type == pa.fs.FileType.File]
    images = [info for info in found if posixpath.splitext(info.path)[1].lower() in SUFFIXES]
    return {info.path: [info.size, info.mtime_ns or 0] for info in images}
