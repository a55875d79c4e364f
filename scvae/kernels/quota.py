"""The cores that this process may use: those of its affinity, of which quotas of containers and jobs leave a part."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

GROUPS, MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")  # Linux control groups: of this process, and all
TOPOLOGY = Path("/sys/devices/system/cpu")


def affinity() -> set[int]:
    """The logical cores on which the system lets this process run; all of them where there is no such choice."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def usable_cores(groups: Path = GROUPS, mount: Path = MOUNT) -> int:
    """How many cores this process may keep busy: its affinity, or the smallest CPU quota, rounded up.

    Parameters
    ----------
    groups
        File that names the control groups of the process.
    mount
        Folder in which control groups are mounted, of version 1 or 2. A container may see its own as the root.
    """
    return min([len(affinity()), *(-(-time // period) for time, period in _quotas(groups, mount))])


def physical_cores(logical: set[int], topology: Path = TOPOLOGY) -> int:
    """How many physical cores some logical cores are; each counts as one if the system does not tell."""
    files = {core: topology / f"cpu{core}" / "topology" / "thread_siblings_list" for core in logical}
    return len({"".join(_lines(file)) or core for core, file in files.items()})


def _quotas(groups: Path, mount: Path) -> Iterator[tuple[int, int]]:
    """CPU time and the period in which it may be used (microseconds), of each group around the process with a quota."""
    for line in _lines(groups):
        _, controllers, path = line.split(":", 2)
        group = PurePosixPath(path.lstrip("/"))
        for inside in (group, *group.parents):
            found: list[str] = []
            if not controllers:  # version 2
                found = " ".join(_lines(mount / inside / "cpu.max")).split()
            elif "cpu" in controllers.split(","):
                folder = mount / controllers / inside
                found = [*_lines(folder / "cpu.cfs_quota_us"), *_lines(folder / "cpu.cfs_period_us")]
            if len(found) == 2 and all(number.isdecimal() for number in found):  # not "max", and not -1
                yield int(found[0]), int(found[1])


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except OSError:  # not on Linux, or not this version of control groups
        return []
