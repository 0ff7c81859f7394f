"""The memory that is left, under the limits of containers and batch jobs."""

from pathlib import Path

import psutil
import pytest
import torch

from ddpm_sa.memory import available
from ddpm_sa.memory.available import available_memory, cgroup_limits, format_bytes

CPU = torch.device("cpu")


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def group(folder: str, limit: str, used: int, stat: str = "anon 0") -> dict[str, str]:
    return {
        f"{folder}/memory.max": limit,
        f"{folder}/memory.current": str(used),
        f"{folder}/memory.stat": stat,
    }


def test_limits_of_a_group_and_its_ancestors_count_without_cached_files(tmp_path: Path) -> None:
    job = "sys/fs/cgroup/slurm/job"
    root = write(
        tmp_path,
        {"proc/self/cgroup": "0::/slurm/job/step"}
        | group(job, "1000", 700, "anon 400\nactive_file 100\ninactive_file 200")
        | group(f"{job}/step", "max", 650)
        | group("sys/fs/cgroup/slurm", "5000", 4900),
    )
    assert sorted(cgroup_limits(root)) == [100, 600]


def test_container_sees_its_own_limit_at_the_top(tmp_path: Path) -> None:
    """Under version 1 the group's path is that on the host, which a container does not see."""
    top = "sys/fs/cgroup/memory"
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "5:cpu:/docker/ab12\n4:memory:/docker/ab12\n0::/",
            f"{top}/memory.limit_in_bytes": "1000",
            f"{top}/memory.usage_in_bytes": "900",
            f"{top}/memory.stat": "cache 1\ntotal_inactive_file 50\ntotal_active_file 30",
        },
    )
    assert cgroup_limits(root) == [180]


def test_group_above_its_limit_has_nothing_left(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/"} | group("sys/fs/cgroup", "1000", 1100)
    assert cgroup_limits(write(tmp_path, files)) == [0]


def test_system_without_control_groups_has_no_limits(tmp_path: Path) -> None:
    assert cgroup_limits(tmp_path) == []


def test_this_machine_has_memory_left_but_not_more_than_all() -> None:
    assert 2**20 < available_memory(CPU) < psutil.virtual_memory().total


def test_processes_of_a_machine_share_the_least_that_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(available, "cgroup_limits", lambda: [3 * 2**20, 2**60])
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert available_memory(CPU) == 3 * 2**20
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert available_memory(CPU) == 2**20


def test_bytes_are_written_in_units_that_people_read() -> None:
    assert format_bytes(512 * 2**20) == "512 MiB"
    assert format_bytes(2**44) == "16,384 GiB"
