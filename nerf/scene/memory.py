"""Memory that a process may still take: what the machine has, and what a container, a batch system or the shell leaves it of that."""

import resource
from pathlib import Path

# Per version of cgroups: file of the limit, of the use, and the lines of memory.stat whose pages are given up when memory is short.
UNIFIED = "memory.max", "memory.current", ("active_file", "inactive_file")
LEGACY = "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file")


def available_memory(system=Path("/")):
    """Bytes that can be had without swapping, or None where nothing says: the least of the machine's, the control groups' and the address space's.

    system: where proc and sys are.
    """
    known = [_of_the_machine(system), *_of_control_groups(system), _of_the_address_space(system)]
    return min((value for value in known if value is not None), default=None)


def _of_the_machine(system):
    return _kibibytes(system / "proc/meminfo", "MemAvailable:")


def _of_the_address_space(system):
    """What `ulimit -v` leaves."""
    limit, used = resource.getrlimit(resource.RLIMIT_AS)[0], _kibibytes(system / "proc/self/status", "VmSize:")
    return None if limit == resource.RLIM_INFINITY or used is None else max(0, limit - used)


def _of_control_groups(system):
    """What each control group that the process is in leaves it, the groups around it included."""
    left = []
    for line in _lines(system / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        top = system / "sys/fs/cgroup" / controllers
        # In a container the path can be that of the host, of which nothing but the top is to be seen.
        inner = top / path.lstrip("/")
        for folder in (inner, *inner.parents):
            if folder.is_relative_to(top):
                left.append(_left(folder, *(LEGACY if controllers else UNIFIED)))
    return left


def _left(folder, limit, used, reclaimable):
    limit, used = _number(folder / limit), _number(folder / used)
    if limit is None or used is None:
        return None
    words = [line.split() for line in _lines(folder / "memory.stat")]
    pages = sum(int(count) for name, count in words if name in reclaimable)
    return max(0, limit - used + min(pages, used))


def _number(file):
    text = " ".join(_lines(file)).strip()
    return int(text) if text.isdecimal() else None  # "max" is no limit


def _kibibytes(file, key):
    return next((1024 * int(line.split()[1]) for line in _lines(file) if line.startswith(key)), None)


def _lines(file):
    """Lines of a file, none where it is not there."""
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
