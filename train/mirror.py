"""Checkpoints mirrored to S3 in the background, and fetched again by a run that starts on an empty disk."""

import contextlib
import itertools
import logging
import os
import random
import re
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from train.checkpoint import BEST, is_whole, sync_folder
from train.store import Store, explaining

log = logging.getLogger(__name__)

CONFIG = "config.yaml"
_STEP = re.compile(r"step=(\d+)\.ckpt")


@dataclass(frozen=True)
class Offer:
    """A checkpoint that waits for its upload: its name, and the link that keeps its content."""

    name: str
    aside: Path

    def discard(self) -> None:
        """Let go of the content."""
        with contextlib.suppress(OSError):
            self.aside.unlink()

    @property
    def kind(self) -> str:
        """Of each kind only the newest matters."""
        return "step" if _STEP.fullmatch(self.name) else self.name


class Mirror:
    """Uploads a run's checkpoints in a thread of rank 0, and gets them back.

    A store that is down costs a warning when it starts to fail and one when it works again; nothing waits for it. It
    can cost the disk space of three more checkpoints: those offered last of each kind and the one that is uploaded.

    Args:
        uri: s3://BUCKET/PREFIX; objects are PREFIX/<run>/checkpoints/<file name>.
        run: "<name>/<run_id>".
        folder: the run's folder of checkpoints on this machine.
        keep: how many checkpoints to go on from are kept there, besides the best.
        timeout_seconds: a connection on which nothing moves for so long has failed.
        longest_pause_seconds: between two attempts; pauses begin at about a second and double.

    Raises:
        ConfigError: `uri` is no such address.
    """

    def __init__(
        self,
        uri: str,
        run: str,
        folder: Path,
        *,
        keep: int = 2,
        timeout_seconds: float = 20.0,
        longest_pause_seconds: float = 60.0,
    ) -> None:
        self.folder, self.keep, self.longest_pause_seconds = folder, keep, longest_pause_seconds
        self.store = Store(f"{uri.rstrip('/')}/{run}/checkpoints", timeout_seconds=timeout_seconds)
        self._numbers = itertools.count()
        self._pending: dict[str, Offer] = {}  # by kind; the kind that waits longest is first
        self._uploading: Offer | None = None
        self._wake = threading.Condition()
        self._closing, self._over = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._failing_since: dict[str, float] = {}  # by what fails

    def offer(self, path: Path) -> None:
        """Have a checkpoint, or the run's config.yaml, uploaded in place of what waits of its kind.

        For rank 0, right after `path` was renamed to its name. Its content is kept: `path` may be deleted or replaced.
        Returns at once and raises nothing.
        """
        if self._thread is None:
            self._start()
        offer = Offer(path.name, self.folder / f".{path.name}.{next(self._numbers)}.mirror")
        try:
            _link(path, offer.aside)
        except OSError as error:
            log.warning("%s is not mirrored to %s: %s", path, self.store.uri, error)
            offer.discard()
            return
        with self._wake:
            dropped = self._pending.get(offer.kind)
            self._pending[offer.kind] = offer
            self._wake.notify()
        if dropped is not None:
            dropped.discard()

    def close(self, timeout_seconds: float) -> list[str]:
        """Wait so long for what is pending; return the names, after a warning, of what was not uploaded."""
        self._closing.set()
        with self._wake:
            self._wake.notify()
        if self._thread is not None:
            self._thread.join(timeout_seconds)
        self._over.set()
        with self._wake:
            left = [offer for offer in (self._uploading, *self._pending.values()) if offer is not None]
            self._uploading, self._pending = None, {}
        for offer in left:
            offer.discard()
        names = [offer.name for offer in left]
        if names:
            log.warning(
                "not uploaded to %s within %g seconds: %s, which this machine alone has, in %s",
                self.store.uri,
                timeout_seconds,
                ", ".join(names),
                self.folder,
            )
        return names

    def fetch(self) -> list[Path]:
        """Download the best checkpoint and the newest whole one to go on from into `folder`; none if none is there.

        The run's config.yaml comes along, into the folder above: a run compares it before it goes on.

        Raises:
            ConfigError, StorageError: the store cannot be read, or the folder cannot be written.
        """
        with explaining(self.store):
            names = self.store.names()
            steps = sorted(filter(_STEP.fullmatch, names), key=_step, reverse=True)
            found = self._first_whole(steps), self._first_whole([name for name in names if name == BEST])
            if CONFIG in names:
                self._download(CONFIG, self.folder.parent / CONFIG, is_good=Path.exists)
        return [path for path in found if path is not None]

    def clear(self) -> None:
        """Delete the run's checkpoints from the store, for a run that starts again.

        Raises:
            ConfigError, StorageError: the store cannot be written.
        """
        with explaining(self.store):
            for name in self.store.names():
                self.store.delete(name)

    def _first_whole(self, names: list[str]) -> Path | None:
        for name in names:
            if self._download(name, self.folder / name, is_good=is_whole):
                return self.folder / name
            log.warning("checkpoint %s/%s is torn (truncated or damaged): passing over it", self.store.uri, name)
        return None

    def _download(self, name: str, path: Path, *, is_good: Callable[[Path], bool]) -> bool:
        """Have the object as `path` if it is good, and tell so."""
        log.info("downloading %s/%s", self.store.uri, name)
        aside = self.folder / f".{name}.fetch"
        try:
            self.store.download(name, aside)
            if not is_good(aside):
                return False
            os.replace(aside, path)
            sync_folder(path.parent)
            return True
        finally:
            aside.unlink(missing_ok=True)

    def _start(self) -> None:
        for leftover in self.folder.glob(".*.mirror"):  # of a process that was killed
            Offer("", leftover).discard()
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        failures = 0
        while (offer := self._next()) is not None:
            if self._attempt(lambda: self.store.upload(offer.aside, offer.name), "upload checkpoints to"):
                failures = 0
                self._done(offer)
            else:
                failures += 1
                self._put_back(offer)
                self._pause(failures)

    def _next(self) -> Offer | None:
        """The offer to upload now; None when all is done and over."""
        with self._wake:
            self._wake.wait_for(lambda: self._pending or self._closing.is_set())
            if self._over.is_set() or not self._pending:
                return None
            self._uploading = self._pending.pop(next(iter(self._pending)))
            return self._uploading

    def _done(self, offer: Offer) -> None:
        with self._wake:
            self._uploading = None
        offer.discard()
        if match := _STEP.fullmatch(offer.name):
            self._attempt(lambda: self._prune(int(match[1])), "delete old checkpoints from")

    def _prune(self, newest: int) -> None:
        steps = sorted(filter(_STEP.fullmatch, self.store.names()), key=_step, reverse=True)
        for name in [name for name in steps if _step(name) <= newest][self.keep :]:
            self.store.delete(name)

    def _put_back(self, offer: Offer) -> None:
        with self._wake:
            self._uploading = None
            newest = self._pending.pop(offer.kind, offer)
            if newest.aside.exists():  # not if the folder was deleted under us
                # In front again: a best checkpoint goes before the later one whose state speaks of it.
                self._pending = {offer.kind: newest, **self._pending}
        if newest is not offer:
            offer.discard()

    def _pause(self, failures: int) -> None:
        seconds = min(self.longest_pause_seconds, 2.0 ** min(failures - 1, 10)) * random.uniform(0.5, 1.0)
        if self._closing.wait(seconds):
            self._over.wait(min(seconds, 1.0))  # the end waits for us: be quick

    def _attempt(self, action: Callable[[], None], what: str) -> bool:
        """Do it and tell whether it worked; a warning when it begins to fail and when it works again."""
        try:
            action()
        except Exception as error:  # whatever it is, training and the next attempt go on
            if what not in self._failing_since and not self._over.is_set():
                self._failing_since[what] = time.monotonic()
                log.warning(
                    "could not %s %s: %s. Training goes on, and so do attempts; nothing more is said until one works.",
                    what,
                    self.store.uri,
                    error,
                )
            return False
        if (since := self._failing_since.pop(what, None)) is not None:
            log.warning("%s works again after %.0f seconds", self.store.uri, time.monotonic() - since)
        return True


def _link(path: Path, aside: Path) -> None:
    try:
        os.link(path, aside)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, aside)


def _step(name: str) -> int:
    match = _STEP.fullmatch(name)
    assert match is not None
    return int(match[1])
