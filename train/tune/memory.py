"""How much memory this process has held, and how much more it may have."""

import ctypes
import gc
import resource
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

_VERSION_2 = ("memory.max", "memory.current", "inactive_file")
_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_OUT_OF_MEMORY = ("can't allocate memory", "CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory was refused, on a GPU or on a CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def start_peak(device: torch.device) -> int:
    """Give back what is not in use, begin a new peak, and return the bytes that are held now."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return int(torch.cuda.memory_allocated(device))
    with suppress(OSError, AttributeError):  # only glibc has it, and it only makes the next reading sharper
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):  # since Linux 4.0; without it the peak is that of all trials so far, the larger last
        Path("/proc/self/clear_refs").write_text("5")
    return _of_status("VmRSS") or peak(device)


def peak(device: torch.device) -> int:
    """Return the most bytes held since `start_peak`: on the GPU where training is there, else by the process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return _of_status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def available() -> int | None:
    """Return the bytes that this process can still get: the machine's, or its cgroup's if fewer; None if not known."""
    with suppress(OSError):
        machine = _field(Path("/proc/meminfo").read_text(), "MemAvailable")
        groups = cgroup_rooms(Path("/proc/self/cgroup").read_text(), Path("/sys/fs/cgroup"))
        return min([machine, *groups]) if machine else None
    return None


def cgroup_rooms(memberships: str, mounted: Path) -> Iterator[int]:
    """Yield the bytes left in each control group with a limit that the process is in, up to the root.

    Files in the page cache that were not used lately do not count: the kernel drops them first.

    Args:
        memberships: the text of /proc/self/cgroup.
        mounted: where control groups are mounted.
    """
    for line in memberships.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = mounted / "memory" if controllers else mounted
        group = root / path.lstrip("/")
        # In a container the path is the host's, of which only the root is to be seen.
        for folder in (group, *group.parents):
            yield from _room(folder, *(_VERSION_1 if controllers else _VERSION_2))
            if folder == root:
                break


def _room(folder: Path, limit_file: str, usage_file: str, cache: str) -> Iterator[int]:
    with suppress(OSError, ValueError):  # no such group here, or "max"
        limit, usage = (int((folder / name).read_text()) for name in (limit_file, usage_file))
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        yield max(0, limit - usage + int(statistics.get(cache, 0)))


def _of_status(name: str) -> int | None:
    with suppress(OSError):
        return _field(Path("/proc/self/status").read_text(), name)
    return None


def _field(text: str, name: str) -> int | None:
    """Bytes of a line such as `VmRSS:  8892 kB`."""
    found = [line.split()[1] for line in text.splitlines() if line.startswith(f"{name}:")]
    return int(found[0]) * 1024 if found else None
