"""The memory that this process may still use: of a GPU, or its part of the machine's."""

import os
from pathlib import Path

import psutil
import torch
from accelerate.utils import gather_object

GIB = 2**30


def available_memory(device: torch.device) -> int:
    """Bytes that this process can still use on a device.

    A GPU belongs to one process. Processes on the CPU share the memory of their machine, or that of
    its container or batch job, in equal parts.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min([psutil.virtual_memory().available, *cgroup_limits()]) // processes


def least_available_memory(device: torch.device) -> int:
    """The least of what the processes of this run can still use, each on its device, in bytes.

    Every process must call this; all get the same number, and so decide alike.
    """
    return min(gather_object([available_memory(device)]))


def cgroup_limits(root: Path = Path("/")) -> list[int]:
    """Bytes that are left within each limit that Linux sets to this process's control groups.

    A group's limit holds for the groups within it, so all its ancestors are read. In a container
    the group's path may be that on the host; its own limit is then at the top.

    Args:
        root: The root of the file system.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return []
    left = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        # Version 2 names no controllers.
        top = root / "sys/fs/cgroup" / controllers
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            left += _left(folder, version=1 if controllers else 2)
            if folder == top:
                break
    return left


def _left(group: Path, version: int) -> list[int]:
    """The bytes left of a group's limit, if it has one.

    Cached files count as used by the group, but are dropped when it needs memory.
    """
    limit, used, prefix = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
        2: ("memory.max", "memory.current", ""),
    }[version]
    try:
        maximum = (group / limit).read_text().strip()
        if maximum == "max":
            return []
        usage = int((group / used).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:
        return []
    cached = sum(int(stat.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
    return [max(int(maximum) - usage + cached, 0)]


def format_bytes(count: float) -> str:
    """As "512 MiB" or "1,234 GiB"."""
    return f"{count / 2**20:,.0f} MiB" if count < 10 * GIB else f"{count / GIB:,.0f} GiB"
