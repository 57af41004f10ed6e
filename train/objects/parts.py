"""A file sent to S3 in parts, of which those that another process has sent already are not sent again."""

import base64
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from train.objects.bucket import Bucket
from train.objects.place import CHUNK

_MOST_PARTS = 10_000  # S3's


@dataclass(frozen=True)
class Part:
    """Bytes of a file and their MD5, which S3 gives as a part's ETag."""

    number: int
    start: int
    size: int
    md5: bytes

    def read(self, descriptor: int) -> bytes:
        """Return its bytes."""
        content = os.pread(descriptor, self.size, self.start)
        while len(content) < self.size and (
            more := os.pread(descriptor, self.size - len(content), self.start + len(content))
        ):
            content += more
        return content


@dataclass(frozen=True)
class Measured:
    """A file, read once: its digests and its parts.

    Attributes:
        tags: the ETags that S3 may give to it: of one put, or of these parts.
    """

    path: Path
    size: int
    sha256: str
    tags: frozenset[str]
    parts: tuple[Part, ...]


def measure(path: Path, *, part_size: int) -> Measured:
    """Read a file; its parts are larger where there would be too many."""
    size = path.stat().st_size
    part_size = max(part_size, -(-size // _MOST_PARTS))
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    parts: list[Part] = []
    with path.open("rb") as file:
        for start in range(0, max(size, 1), part_size):
            of_part, length = hashlib.md5(usedforsecurity=False), 0
            while length < part_size and (chunk := file.read(min(CHUNK, part_size - length))):
                length += len(chunk)
                for digest in (sha256, md5, of_part):
                    digest.update(chunk)
            parts.append(Part(len(parts) + 1, start, length, of_part.digest()))
    joined = hashlib.md5(b"".join(part.md5 for part in parts), usedforsecurity=False).hexdigest()
    tags = frozenset({md5.hexdigest(), f"{joined}-{len(parts)}"})
    return Measured(path, size, sha256.hexdigest(), tags, tuple(parts))


def send(file: Measured, bucket: Bucket, name: str, *, go_on: bool) -> None:
    """Send a file as the object `name`, in one put if it is one part.

    Args:
        file: the file.
        bucket: where to.
        name: of the object.
        go_on: whether with an upload that was begun and not finished.

    Raises:
        ClientError: among others NoSuchUpload, where a twin has finished the same upload, or was given it up.
    """
    with file.path.open("rb") as source:
        if len(file.parts) == 1:
            _put(source.fileno(), file.parts[0], bucket, name)
            return
        upload, there = _begun(file, bucket, name) if go_on else ("", {})
        upload = upload or bucket.call("create_multipart_upload", name, **bucket.encryption())["UploadId"]
        bucket.sent.add(kept_parts=len(there))
        missing = [part for part in file.parts if part.number not in there]
        tags = {**there, **_send_parts(source.fileno(), missing, bucket, name, upload)}
    listed = [{"PartNumber": number, "ETag": tags[number]} for number in sorted(tags)]
    bucket.call("complete_multipart_upload", name, UploadId=upload, MultipartUpload={"Parts": listed})
    bucket.sent.add(files=1)


def _put(descriptor: int, part: Part, bucket: Bucket, name: str) -> None:
    arguments = {"Body": part.read(descriptor), "ContentMD5": _base64(part), **bucket.encryption()}
    _counted(bucket, part, "put_object", name, **arguments)
    bucket.sent.add(files=1)


def _send_parts(descriptor: int, parts: Sequence[Part], bucket: Bucket, name: str, upload: str) -> dict[int, str]:
    """Send parts, some at a time, and return their ETags; the first failure ends them all."""
    pool = ThreadPoolExecutor(bucket.settings.parallel)
    try:
        tags = pool.map(partial(_send_part, descriptor, bucket=bucket, name=name, upload=upload), parts)
        return {part.number: tag for part, tag in zip(parts, tags, strict=True)}
    except BaseException:
        bucket.giving_up.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        bucket.giving_up.clear()


def _send_part(descriptor: int, part: Part, *, bucket: Bucket, name: str, upload: str) -> str:
    arguments = {"Body": part.read(descriptor), "ContentMD5": _base64(part), "PartNumber": part.number}
    return str(_counted(bucket, part, "upload_part", name, UploadId=upload, **arguments)["ETag"])


def _counted(bucket: Bucket, part: Part, operation: str, name: str, **arguments: Any) -> Any:
    def attempt() -> Any:
        try:
            answer = getattr(bucket.client, operation)(Bucket=bucket.bucket, Key=bucket.key(name), **arguments)
        except Exception:
            bucket.sent.add(failed=1)
            raise
        bucket.sent.add(parts=1, size=part.size)
        return answer

    return bucket.patiently(attempt)


def _begun(file: Measured, bucket: Bucket, name: str) -> tuple[str, dict[int, str]]:
    """The unfinished upload of this object that has most of the file: its id, and its parts' ETags."""
    best: tuple[str, dict[int, str]] = ("", {})
    for upload in bucket.pages("list_multipart_uploads", "Uploads", Prefix=bucket.key(name)):
        if upload["Key"] != bucket.key(name):
            continue
        there = _arrived(file, bucket, name, upload["UploadId"])
        if not best[0] or len(there) > len(best[1]):
            best = upload["UploadId"], there
    return best


def _arrived(file: Measured, bucket: Bucket, name: str, upload: str) -> dict[int, str]:
    """The ETags of the parts that an upload has and that are the file's."""
    ours = {part.number: part for part in file.parts}
    found = bucket.pages("list_parts", "Parts", Key=bucket.key(name), UploadId=upload)
    return {
        part["PartNumber"]: part["ETag"]
        for part in found
        if (it := ours.get(part["PartNumber"])) is not None
        and (part["Size"], part["ETag"].strip('"')) == (it.size, it.md5.hex())
    }


def _base64(part: Part) -> str:
    return base64.b64encode(part.md5).decode()
