"""A bucket that is asked again while the store is away, as a gateway is that starts anew."""

import logging
import math
import random
import threading
import time
from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar

from train.objects.place import Sent, Settings
from train.store import PASSING, code_of, connect, split, status_of

log = logging.getLogger(__name__)

T = TypeVar("T")


class Bucket:
    """A bucket, the settings and the counters, shared by threads.

    Raises:
        ConfigError: `uri` is not s3://BUCKET or s3://BUCKET/PREFIX.
    """

    def __init__(self, uri: str, settings: Settings) -> None:
        self.bucket, self.prefix = split(uri)
        self.uri, self.settings, self.sent = uri.rstrip("/"), settings, Sent()
        self.giving_up = threading.Event()  # ends the pauses of all threads
        self._warned = -math.inf

    @cached_property
    def client(self) -> Any:
        """boto3's, with no attempts of its own: ours are counted."""
        checksums = self.settings.checksums
        return connect(
            timeout_seconds=self.settings.timeout_seconds,
            attempts=1,
            max_pool_connections=max(10, self.settings.parallel),
            request_checksum_calculation=checksums,
            response_checksum_validation=checksums,
        )

    def call(self, operation: str, name: str, **arguments: Any) -> Any:
        """Ask for something about the object `name`, again while the store is away."""
        action = getattr(self.client, operation)
        return self.patiently(lambda: action(Bucket=self.bucket, Key=self.key(name), **arguments))

    def patiently(self, action: Callable[[], T]) -> T:
        """Do it, again while the store is away."""
        patience = self.patience()
        while True:
            try:
                return action()
            except Exception as error:
                patience.wait(error)

    def pages(self, operation: str, what: str, **arguments: Any) -> list[Any]:
        """Return all that a listing has, again from its start while the store is away."""
        paginator = self.client.get_paginator(operation)
        return self.patiently(
            lambda: [
                found for page in paginator.paginate(Bucket=self.bucket, **arguments) for found in page.get(what, [])
            ]
        )

    def patience(self) -> "Patience":
        """Return a new one."""
        return Patience(self.settings.patience_seconds, self.giving_up, self._warn)

    def _warn(self, error: Exception) -> None:
        """Say once for all threads that we wait."""
        seconds, now = self.settings.patience_seconds, time.monotonic()
        if now - self._warned > seconds:
            self._warned = now
            log.warning("%s does not answer (%s): trying again for up to %.0f s", self.uri, error, seconds)

    def encryption(self) -> dict[str, str]:
        """Return the arguments of what writes an object."""
        given = {"ServerSideEncryption": self.settings.sse, "SSEKMSKeyId": self.settings.sse_kms_key_id}
        return {name: value for name, value in given.items() if value is not None}

    def key(self, name: str) -> str:
        """Return the key of an object."""
        return f"{self.prefix}/{name}" if self.prefix else name


class Patience:
    """Pauses that double, until nothing has worked for `seconds`."""

    def __init__(self, seconds: float, giving_up: threading.Event, warn: Callable[[Exception], None]) -> None:
        self.seconds, self.giving_up, self.warn = seconds, giving_up, warn
        self.failures, self._since = 0, time.monotonic()

    def worked(self) -> None:
        """Begin anew."""
        self.failures, self._since = 0, time.monotonic()

    def wait(self, error: Exception) -> None:
        """Pause, or raise the error if it does not pass or has lasted too long."""
        left = self._since + self.seconds - time.monotonic()
        if not _passes(error) or left <= 0 or self.giving_up.is_set():
            raise error
        if self.failures == 0:
            self.warn(error)
        pause = min(5.0, 0.25 * 2.0 ** min(self.failures, 10)) * random.uniform(0.5, 1.0)
        self.failures += 1
        self.giving_up.wait(min(pause, left))


def _passes(error: Exception) -> bool:
    from botocore import exceptions as botocore

    if isinstance(error, botocore.ClientError):
        return status_of(error) >= 500 or code_of(error) in PASSING
    passing = (botocore.ConnectionError, botocore.HTTPClientError, botocore.IncompleteReadError)
    return isinstance(error, passing) and not isinstance(error, botocore.SSLError)
