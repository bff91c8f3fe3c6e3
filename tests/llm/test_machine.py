"""What a machine says of its memory: by psutil, and by the limits of control groups."""

from __future__ import annotations

from types import SimpleNamespace

import psutil
import pytest

from selfextend_rag.llm.devices import limited_memory, main_memory
from selfextend_rag.planning.memory import DeviceMemory

GIB = 1 << 30


def machine(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture(autouse=True)
def memory(monkeypatch):
    """A machine of 16 GiB, 9 of them free."""
    figures = SimpleNamespace(total=16 * GIB, available=9 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: figures)


def test_what_the_system_calls_available_is_free(tmp_path):
    assert main_memory(tmp_path) == DeviceMemory("cpu", 16 * GIB, 9 * GIB)


@pytest.mark.parametrize("group", ["/", "/jobs/one"])
def test_the_limit_of_a_container_counts(tmp_path, group):
    """The limit may be that of a group above; what its file cache holds can be dropped."""
    folder = "sys/fs/cgroup"
    files = {
        "proc/self/cgroup": f"0::{group}\n",
        f"{folder}/memory.max": f"{4 * GIB}\n",
        f"{folder}/memory.current": f"{3 * GIB}\n",
        f"{folder}/memory.stat": f"anon 5\ninactive_file {1 * GIB}\n",
        f"{folder}/jobs/one/memory.max": "max\n",
        f"{folder}/jobs/one/memory.current": "5\n",
        f"{folder}/jobs/one/memory.stat": "inactive_file 0\n",
    }
    assert main_memory(machine(tmp_path, files)) == DeviceMemory("cpu", 4 * GIB, 2 * GIB)


def test_the_older_form_of_limits_counts_too(tmp_path):
    folder = "sys/fs/cgroup/memory"
    files = {
        "proc/self/cgroup": "4:memory:/x\n",
        f"{folder}/memory.limit_in_bytes": f"{2 * GIB}",
        f"{folder}/memory.usage_in_bytes": f"{3 * GIB}",
        f"{folder}/memory.stat": "inactive_file 0\n",
    }
    assert main_memory(machine(tmp_path, files)) == DeviceMemory("cpu", 2 * GIB, 0)


def test_limits_are_taken_for_all_devices_or_for_each():
    assert limited_memory("1GiB", ["cpu"]) == (DeviceMemory("cpu", GIB, GIB),)
    assert limited_memory({0: "2GiB", "cpu": 5}, ["cuda:0", "cpu"]) == (
        DeviceMemory("cuda:0", 2 * GIB, 2 * GIB),
        DeviceMemory("cpu", 5, 5),
    )
    assert limited_memory({"cuda": 7, "disk": 3}, ["cuda:0"]) == (DeviceMemory("cuda:0", 7, 7),)
    with pytest.raises(ValueError, match="names cuda:1, and the model is on cpu"):
        limited_memory({1: 5}, ["cpu"])
