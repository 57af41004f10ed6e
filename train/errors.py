"""What a verb tells a user who can mend the problem: one message on stderr and an exit code.

The exit codes of every verb:

    0    done
    1    a defect: the traceback is on stderr
    2    the command line, the configuration or the installation is wrong
    3    an exported graph failed its gate
    4    the data cannot be read or breaks a rule
    5    training diverged: the loss is not finite
    6    a checkpoint or result cannot be written or read
    7    a check of the machines failed before training
    8    another process of the run failed, was lost or hung
    9    a bundle, key or signature cannot be trusted
    10   too many trials of a sweep failed
    75   stopped by a signal after saving; the same command goes on
    130  interrupted

`HYDRA_FULL_ERROR=1` shows the traceback of every one of them.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

from train import ranks

FULL_ERROR = "HYDRA_FULL_ERROR"


class UserError(Exception):
    """A problem that the user can mend; its text is the whole message.

    Where all ranks of a run raise it alike (`on_every_rank`), rank 0's is shown.
    """

    exit_code = 2
    on_every_rank = False


class ConfigError(UserError):
    """The command line or the configuration breaks a rule."""

    on_every_rank = True


class GateError(UserError):
    """An exported graph failed its gate."""

    exit_code = 3


class DataError(UserError):
    """The data cannot be read or breaks a rule."""

    exit_code = 4


class DivergedError(UserError):
    """The loss is not finite."""

    exit_code = 5
    on_every_rank = True


class StorageError(UserError):
    """A checkpoint or result cannot be written or read."""

    exit_code = 6


class PreflightError(UserError):
    """A check of the machines failed before training."""

    exit_code = 7
    on_every_rank = True


class PeerLostError(UserError):
    """Another process of the run failed, was lost or hung."""

    exit_code = 8


class TrustError(UserError):
    """A bundle, key or signature cannot be trusted."""

    exit_code = 9


class SweepError(UserError):
    """Too many trials of a sweep failed in a row."""

    exit_code = 10
    on_every_rank = True


class StoppedError(UserError):
    """A signal asked the run to stop; it has saved, and the same command goes on."""

    exit_code = 75
    on_every_rank = True


class InterruptedRunError(UserError):
    """Ctrl-C; the message says how to go on."""

    exit_code = 130


@contextmanager
def reporting(kind: type[UserError]) -> Iterator[None]:
    """Turn the ValueError or OSError of code that knows no `train` into `kind`: the same text, the cause kept."""
    try:
        yield
    except Exception as error:
        cause = _called(error)
        if isinstance(cause, (ValueError, OSError)):
            raise kind(str(cause)) from error
        raise


@contextmanager
def reporting_interrupt(message: str) -> Iterator[None]:
    """Turn Ctrl-C, also when Lightning has made it a SystemExit, into an error with this message."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as error:
        if isinstance(error, SystemExit) and not isinstance(error.__context__, KeyboardInterrupt):
            raise
        raise InterruptedRunError(message) from error


_failures: list[UserError] = []
_full_error_before: list[str | None] = []


@contextmanager
def job() -> Iterator[None]:
    """Report a UserError of one job and let the other jobs of a `--multirun` go on; `guard` returns the exit code.

    Inside, `HYDRA_FULL_ERROR` is the user's own again, for child processes and for Hydra's traceback of a defect.
    """
    _restore_environment()
    try:
        yield
    except Exception as error:
        failure = _explained(error) or _refused_by_constructor(error)
        if failure is None or wants_traceback():
            raise
        report(failure)
        if isinstance(failure, InterruptedRunError):
            raise SystemExit(failure.exit_code) from None  # no other job of a `--multirun` starts
        _failures.append(failure)


def guard(verb: Callable[[], object], config_name: str = "train") -> int:
    """Run a verb, whose config is configs/<config_name>.yaml, to its exit code; a defect keeps its traceback."""
    _failures.clear()
    _full_error_before[:] = [os.environ.get(FULL_ERROR)]
    full = wants_traceback()
    os.environ[FULL_ERROR] = "1"  # Hydra then hands its errors on instead of printing them itself
    try:
        verb()
    except BrokenPipeError:  # the reader of what we print has enough, such as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        report(InterruptedRunError("Interrupted."))
        return InterruptedRunError.exit_code
    except Exception as error:
        failure = _explained(error) or _refused_by_hydra(error, config_name)
        if failure is None or full:
            raise
        report(failure)
        return failure.exit_code
    finally:
        _restore_environment()
    return _failures[0].exit_code if _failures else 0


def wants_traceback() -> bool:
    """Whether the user set `HYDRA_FULL_ERROR=1`."""
    return os.environ.get(FULL_ERROR) == "1"


def report(failure: UserError) -> None:
    """Print the message on stderr, once for all ranks if all of them have it."""
    if failure.on_every_rank and not ranks.is_rank_zero():
        return
    hint = f"\n({FULL_ERROR}=1 shows the traceback.)" if failure.__cause__ else ""
    print(f"{failure}{hint}", file=sys.stderr, flush=True)


def _explained(error: BaseException) -> UserError | None:
    """The error in a user's words; None for a defect."""
    if isinstance(error, UserError):
        return error
    if "torchvision::nms" in str(error):
        return _mismatched_torchvision(error)
    cause = _called(error)
    if getattr(cause, "concerns_data", False):  # data modules read in training, too, and know no `train`
        failure: UserError = DataError(str(cause))
        failure.__cause__ = error
        return failure
    if type(cause).__name__ == "MisconfigurationException":  # Lightning: an option that does not go with the others
        failure = ConfigError(f"trainer: {cause}")
        failure.__cause__ = error
        return failure
    return None


def _refused_by_hydra(error: BaseException, config_name: str) -> UserError | None:
    if str(error).startswith("Config group override must be"):  # of group=null, a plain ValueError
        nulls = [given for given in sys.argv[1:] if given.lower().endswith(("=null", "="))]
        return ConfigError(f"{', '.join(nulls)}: a group of the config takes the name of a file, as in baselines=none")
    if isinstance(error, UnicodeDecodeError):
        from train.config.compose import not_utf8

        return not_utf8(sys.argv[1:])
    if type(error).__module__.partition(".")[0] not in {"hydra", "omegaconf", "yaml"}:
        return None
    from train.config.compose import explain

    return explain(error, sys.argv[1:], config_name)


def _refused_by_constructor(error: BaseException) -> UserError | None:
    """What the signature cannot say, such as two arguments that exclude each other."""
    cause = _called(error)
    if cause is error or not isinstance(cause, (ValueError, OSError)):
        return None
    node = str(error).partition("full_key: ")[2]
    failure = ConfigError(f"{node}: {cause}" if node else str(cause))
    failure.__cause__ = error
    return failure


def _mismatched_torchvision(error: BaseException) -> UserError:
    pair = " and ".join(f"{name} {_version(name)}" for name in ("torch", "torchvision"))
    failure = UserError(
        f"{pair} do not belong together, so that pytorch_lightning cannot be imported.\n"
        "Pairs: torch 2.11 with torchvision 0.26, 2.13 with 0.28, 2.15 with 0.29 or newer, from the same index.\n"
        "Mend it with: pip install --force-reinstall torch torchvision"
    )
    failure.__cause__ = error
    return failure


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"


def _called(error: BaseException) -> BaseException:
    """What a constructor raised, out of the wrapping of Hydra's instantiate."""
    while type(error).__name__ == "InstantiationException" and error.__cause__ is not None:
        error = error.__cause__
    return error


def _restore_environment() -> None:
    for before in _full_error_before:
        if before is None:
            os.environ.pop(FULL_ERROR, None)
        else:
            os.environ[FULL_ERROR] = before
