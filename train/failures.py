"""What the ranks of a run say when one of them fails: its own traceback once, and one line from each that lost it."""

import contextlib
import logging
import re
from collections.abc import Iterator

from train import ranks
from train.errors import PeerLostError, UserError
from train.folder import FILE_ONLY, RunFolder

log = logging.getLogger(__name__)

# How gloo, NCCL and the store say that another process is gone or silent.
_LOST = re.compile(
    r"Connection (closed|reset) by peer|Broken pipe|Socket closed|Connection refused|Connection was likely closed"
    r"|[Tt]imed out (waiting|after)|recv, no data|remote process exited|Watchdog caught collective operation timeout"
    r"|failed to (recv|send)|timeout caused pair closure|wait timeout|Rank \d+ failed to (pass|reach)"
)


@contextlib.contextmanager
def reported(place: RunFolder) -> Iterator[None]:
    """Log what ends the run; turn the loss of another rank into a PeerLostError, whose text says where to look."""
    try:
        yield
    except UserError as error:
        log.error("%s", error, extra=FILE_ONLY)
        raise
    except Exception as error:
        log.exception("%s failed", ranks.name(), extra=FILE_ONLY)
        if not is_lost_peer(error):
            raise
        raise PeerLostError(
            f"{ranks.name()} ends: another process of the run failed, was lost or hung "
            f"({_short(error)}). Why is in its own traceback above, or in the logs of "
            f"{place.path}; start again with the same run_id to go on from the newest checkpoint."
        ) from error


def is_lost_peer(error: BaseException) -> bool:
    """Tell whether an error of a collective means that another rank is gone."""
    return isinstance(error, RuntimeError) and _LOST.search(str(error)) is not None


def _short(error: BaseException) -> str:
    line = str(error).strip().splitlines()[0]
    return line.removeprefix(line[: line.find("] ") + 2] if line.startswith("[") else "").partition(". ")[0]
