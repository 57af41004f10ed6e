"""Objects in S3 or a store that speaks its language: put whole or not at all, and errors that say what to do.

Endpoint, region and credentials come from the usual AWS_* variables, AWS_ENDPOINT_URL for a store that is not Amazon's.
"""

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from train.errors import ConfigError, StorageError, UserError

_URI = re.compile(r"s3://(?P<bucket>[^/]+)(?:/+(?P<prefix>.*?))?/*")
_ABSENT = {"NoSuchBucket", "404"}
# Refusals that pass by themselves: the store has too much to do, or another does the same at this moment.
PASSING = {
    *("SlowDown", "Throttling", "ThrottlingException", "TooManyRequestsException", "RequestTimeout"),
    *("ConditionalRequestConflict", "OperationAborted"),
}
_REFUSED = {"AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"}


class Store:
    """The objects under one prefix of a bucket; a put or a finished upload is whole or not there.

    Args:
        uri: s3://BUCKET/PREFIX.
        timeout_seconds: a connection on which nothing moves for so long has failed.

    Raises:
        ConfigError: `uri` is no such address.
    """

    def __init__(self, uri: str, *, timeout_seconds: float) -> None:
        self.bucket, self.prefix = split(uri)
        self.uri, self.timeout_seconds = uri.rstrip("/"), timeout_seconds

    @cached_property
    def _client(self) -> Any:
        return connect(timeout_seconds=self.timeout_seconds)

    def upload(self, path: Path, name: str) -> None:
        """Put a file there under `name`."""
        # In this thread alone: those of a pool would hold up the end of the process while the store hangs.
        self._client.upload_file(str(path), self.bucket, self._key(name), Config=_in_parts(use_threads=False))

    def download(self, name: str, path: Path) -> None:
        """Get the object `name` as a file."""
        self._client.download_file(self.bucket, self._key(name), str(path), Config=_in_parts(use_threads=True))

    def delete(self, name: str) -> None:
        """Delete the object `name`, if it is there."""
        self._client.delete_object(Bucket=self.bucket, Key=self._key(name))

    def write(self, name: str, content: bytes) -> None:
        """Put a small object there."""
        self._client.put_object(Bucket=self.bucket, Key=self._key(name), Body=content)

    def names(self) -> list[str]:
        """Return the names of all objects."""
        start = self._key("")
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=start)
        return [entry["Key"].removeprefix(start) for page in pages for entry in page.get("Contents", [])]

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name


def connect(*, timeout_seconds: float, attempts: int = 3, **options: Any) -> Any:
    """Return a client of Amazon's S3, or of the store at AWS_ENDPOINT_URL; `options` are botocore's."""
    import boto3  # half a second that a run without a store does not spend
    from botocore.config import Config

    endpoint = _endpoint()
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    config = Config(
        connect_timeout=timeout_seconds,
        read_timeout=timeout_seconds,
        retries={"mode": "standard", "total_max_attempts": attempts},
        s3={"addressing_style": "path" if endpoint else "auto"},  # no bucket is a host name of a private store's
        **options,
    )
    session = boto3.session.Session(region_name=region or ("us-east-1" if endpoint else None))
    return session.client("s3", endpoint_url=endpoint, config=config)


def split(uri: str) -> tuple[str, str]:
    """Return the bucket and the prefix of s3://BUCKET/PREFIX. Raises ConfigError where it is no such address."""
    match = _URI.fullmatch(uri)
    if match is None:
        raise ConfigError(f"an object store is given as s3://BUCKET or s3://BUCKET/PREFIX, got {uri!r}")
    return match["bucket"], match["prefix"] or ""


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _in_parts(*, use_threads: bool) -> Any:
    from boto3.s3.transfer import TransferConfig

    size = 64 * 2**20
    return TransferConfig(
        multipart_threshold=size, multipart_chunksize=size, use_threads=use_threads, preferred_transfer_client="classic"
    )


def probe(uri: str, *, timeout_seconds: float = 10.0) -> None:
    """Write, list and delete a small object under `uri`, as a run's mirror will.

    Raises:
        ConfigError: no such bucket, no credentials, or they do not allow it: waiting would not help.
        StorageError: the store cannot be reached: it may be there again later.
    """
    store, name = Store(uri, timeout_seconds=timeout_seconds), f".probe-{secrets.token_hex(8)}"
    with explaining(store):
        store.write(name, b"")
        store.names()
        store.delete(name)


class Place(Protocol):
    """What an error about a store names."""

    uri: str
    bucket: str


@contextmanager
def explaining(store: Place) -> Iterator[None]:
    """Turn what goes wrong with the store into an error that says what to do."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError):
            raise
        raise _explained(error, store) from error


def _explained(error: Exception, store: Place) -> Exception:
    if isinstance(error, ImportError):
        return ConfigError(f"{store.uri} needs boto3, which is not installed ({error}): pip install boto3")
    if isinstance(error, OSError):
        return StorageError(
            f"could not keep here what {store.uri} holds: {error}. Make room, or give a folder that can be written."
        )
    from botocore.exceptions import NoCredentialsError, PartialCredentialsError

    error = getattr(error, "last_exception", error)  # of several attempts
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return ConfigError(
            f"no credentials for {store.uri} ({error}): set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give this "
            "machine a role"
        )
    return _answered(error, store)


def _answered(error: Exception, store: Place) -> Exception:
    """What a server said, or that it said nothing."""
    if code_of(error) in _ABSENT:
        return ConfigError(f"there is no bucket {store.bucket!r} for {store.uri}: make it, or correct the address")
    said, where = _said(error), _endpoint() or "Amazon's endpoint"
    if code_of(error) in _REFUSED:
        return ConfigError(
            f"{store.uri} refuses our credentials ({said}): they must allow to put, get, list and delete objects there"
        )
    if 400 <= status_of(error) < 500 and status_of(error) != 404 and code_of(error) not in PASSING:
        return ConfigError(
            f"{store.uri}, at {where}, does not take the request ({said}): an option such as encryption that it does "
            "not know or allow, or a region or name that is not right"
        )
    return StorageError(
        f"{store.uri} cannot be used now, at {where}: {said}. Start again when the store is there, or without it."
    )


def code_of(error: Exception) -> str:
    """Return S3's name of an error, or its HTTP status; empty where it is no answer of a server."""
    return str(getattr(error, "response", {}).get("Error", {}).get("Code", ""))


def status_of(error: Exception) -> int:
    """Return the HTTP status of an error; 0 where it is no answer of a server."""
    return int(getattr(error, "response", {}).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _said(error: Exception) -> str:
    """What the server answered, without the words that botocore puts around it."""
    answer = getattr(error, "response", {}).get("Error")
    if not answer:
        return str(error)
    words = (getattr(error, "operation_name", ""), answer.get("Code"), answer.get("Message"))
    return ": ".join(str(word) for word in words if word)
