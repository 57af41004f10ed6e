"""Objects in S3 or a store that speaks its language, with real compare-and-set."""

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from train.errors import StorageError, TrustError
from train.objects.bucket import Bucket
from train.objects.parts import Measured, measure, send
from train.objects.place import CHUNK, LARGEST_DOCUMENT, Entry, MissingError, Settings
from train.store import code_of, explaining, status_of

_ABSENT = {"NoSuchKey", "404"}
_REFUSED = {"PreconditionFailed", "412"}
_OVERTAKEN = {"NoSuchUpload", "InvalidPart", "InvalidPartOrder"}
_LARGEST_COPY = 5 * 2**30
_FRESH_SECONDS = 3600.0  # a blob that is found and is older is made new, so that no `gc` takes it for forgotten


class S3Objects:
    """Objects under one prefix of a bucket.

    Raises:
        ConfigError: `uri` is not s3://BUCKET or s3://BUCKET/PREFIX.
    """

    def __init__(self, uri: str, settings: Settings) -> None:
        self._bucket = Bucket(uri, settings)
        self.uri, self.sent = self._bucket.uri, self._bucket.sent

    def read(self, name: str) -> tuple[bytes, str] | None:
        """Return a small object and a tag of its content; None where there is none."""
        with explaining(self._bucket):
            try:
                return self._bucket.patiently(lambda: self._read(name))
            except Exception as error:
                if code_of(error) in _ABSENT:
                    return None
                raise

    def create(self, name: str, content: bytes) -> bool:
        """Put a small object where there is none; False where there is one."""
        return self._put_if(name, content, IfNoneMatch="*")

    def replace(self, name: str, content: bytes, *, tag: str) -> bool:
        """Put a small object in the place of the one with this tag; False where it has another by now."""
        # Ceph 16 wants the tag without quotes; a store that wants them refuses that and gets them.
        return self._put_if(name, content, IfMatch=tag) or self._put_if(name, content, IfMatch=f'"{tag}"')

    def upload(self, path: Path, name: str, *, sha256: str) -> None:
        """Have the file there, and see that it arrived; neither it nor its parts are sent twice."""
        file = _measured(path, self._bucket.settings.part_size)
        if file.sha256 != sha256:
            raise TrustError(f"{path} is not the file that its manifest names: its sha256 is another")
        with explaining(self._bucket):
            if self._fault(file, name) is None and self._keep(file, name):
                self.sent.add(kept_files=1)
                return
            for go_on in (True, False):
                self._send(file, name, go_on=go_on)
                fault = self._fault(file, name)
                if fault is None:
                    return
        raise StorageError(f"{self.uri}/{name} was sent, but {fault}")

    def chunks(self, name: str) -> Iterator[bytes]:
        """Read an object bit by bit, going on where a connection broke."""
        start, patience = 0, self._bucket.patience()
        with explaining(self._bucket):
            while True:
                try:
                    for chunk in self._body(name, start):
                        start += len(chunk)
                        patience.worked()
                        yield chunk
                    return
                except Exception as error:
                    if code_of(error) in _ABSENT:
                        raise MissingError(f"{self.uri}/{name} is not there") from error
                    patience.wait(error)

    def find(self, name: str) -> Entry | None:
        """Return what is known of an object."""
        with explaining(self._bucket):
            head = self._head(name)
        return head and Entry(name, head["ContentLength"], head["LastModified"].timestamp())

    def entries(self, prefix: str) -> Iterator[Entry]:
        """Return the objects whose names begin so."""
        for found in self._pages("list_objects_v2", "Contents", prefix):
            yield Entry(self._name(found["Key"]), found["Size"], found["LastModified"].timestamp())

    def delete(self, name: str) -> None:
        """Delete an object, if it is there."""
        with explaining(self._bucket):
            self._bucket.call("delete_object", name)

    def unfinished(self) -> Iterator[Entry]:
        """Return multipart uploads that were begun and not finished; a store keeps, and bills, their parts."""
        for found in self._pages("list_multipart_uploads", "Uploads", ""):
            yield Entry(self._name(found["Key"]), 0, found["Initiated"].timestamp(), found["UploadId"])

    def abandon(self, entry: Entry) -> None:
        """Give up such an upload and free its space."""
        with explaining(self._bucket):
            try:
                self._bucket.call("abort_multipart_upload", entry.name, UploadId=entry.upload)
            except Exception as error:
                if code_of(error) != "NoSuchUpload":  # finished, or given up by another
                    raise

    def _read(self, name: str) -> tuple[bytes, str]:
        answer = self._bucket.client.get_object(Bucket=self._bucket.bucket, Key=self._bucket.key(name))
        if answer["ContentLength"] > LARGEST_DOCUMENT:
            raise StorageError(f"{self.uri}/{name} is larger than {LARGEST_DOCUMENT:,} bytes: no file of a registry is")
        return answer["Body"].read(), answer["ETag"].strip('"')

    def _put_if(self, name: str, content: bytes, **condition: str) -> bool:
        with explaining(self._bucket):
            try:
                self._bucket.call("put_object", name, Body=content, **condition, **self._bucket.encryption())
            except Exception as error:
                if code_of(error) not in _REFUSED | _ABSENT and status_of(error) != 412:
                    raise
                return False  # also where the put had worked, its answer was lost and it was repeated
        return True

    def _send(self, file: Measured, name: str, *, go_on: bool) -> None:
        try:
            send(file, self._bucket, name, go_on=go_on)
        except Exception as error:
            if code_of(error) not in _OVERTAKEN:  # else a twin has finished the upload: it is there, or we begin anew
                raise

    def _fault(self, file: Measured, name: str) -> str | None:
        """Why the object is not the file, encrypted as wanted; read back where its ETag does not tell."""
        head = self._head(name)
        if head is None:
            return "it is not there"
        if head["ContentLength"] != file.size:
            return f"it has {head['ContentLength']:,} bytes there, and {file.size:,} here"
        wanted = self._bucket.settings.sse
        if wanted is not None and head.get("ServerSideEncryption") != wanted:
            return f"the store has not encrypted it: it does not know sse={wanted}"
        if head["ETag"].strip('"') in file.tags:
            return None
        digest = hashlib.sha256()
        for chunk in self.chunks(name):
            digest.update(chunk)
        return None if digest.hexdigest() == file.sha256 else "its content is another there"

    def _keep(self, file: Measured, name: str) -> bool:
        """Make an old object new by copying it onto itself; False where it is too large or gone."""
        entry = self.find(name)
        if entry is None:
            return False
        if time.time() - entry.modified < _FRESH_SECONDS:
            return True
        if file.size > _LARGEST_COPY:
            return False
        source = {"Bucket": self._bucket.bucket, "Key": self._bucket.key(name)}
        options = {"CopySource": source, "MetadataDirective": "REPLACE", **self._bucket.encryption()}
        try:
            self._bucket.call("copy_object", name, **options)
        except Exception as error:
            if code_of(error) not in _ABSENT:
                raise
            return False
        return True

    def _head(self, name: str) -> Any:
        try:
            return self._bucket.call("head_object", name)
        except Exception as error:
            if code_of(error) not in _ABSENT:
                raise
            return None

    def _body(self, name: str, start: int) -> Iterator[bytes]:
        rest = {"Range": f"bytes={start}-"} if start else {}
        answer = self._bucket.client.get_object(Bucket=self._bucket.bucket, Key=self._bucket.key(name), **rest)
        yield from answer["Body"].iter_chunks(CHUNK)

    def _pages(self, operation: str, what: str, prefix: str) -> list[Any]:
        with explaining(self._bucket):
            return self._bucket.pages(operation, what, Prefix=self._bucket.key(prefix))

    def _name(self, key: str) -> str:
        return key.removeprefix(self._bucket.key(""))


def _measured(path: Path, part_size: int) -> Measured:
    try:
        return measure(path, part_size=part_size)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error}") from error
