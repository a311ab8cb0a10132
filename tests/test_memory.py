"""What memory is left: the least of the machine's, the control groups' and the address space's."""

import subprocess
import sys

import pytest

from conftest import ROOT
from nerf.scene.memory import available_memory

MIB = 2**20


@pytest.fixture
def system(tmp_path):
    """The files of a machine with 1000 MiB left."""
    write(tmp_path / "proc/meminfo", "MemTotal: 2000000 kB\nMemAvailable: 1024000 kB\n")
    return tmp_path


def write(file, text):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_the_machine(system, tmp_path):
    assert available_memory(system) == 1000 * MIB
    assert available_memory(tmp_path / "nothing here") is None


def test_control_groups(system):
    """A group without a limit, in one of 300 MiB of which 200 are used, 50 of these for files that need not be kept."""
    write(system / "proc/self/cgroup", "0::/job/step\n")
    group = system / "sys/fs/cgroup/job"
    for folder, limit in ((group, str(300 * MIB)), (group / "step", "max")):
        write(folder / "memory.max", f"{limit}\n")
        write(folder / "memory.current", f"{200 * MIB}\n")
        write(folder / "memory.stat", f"anon 7\ninactive_file {30 * MIB}\nactive_file {20 * MIB}\n")
    assert available_memory(system) == 150 * MIB
    write(group / "memory.current", f"{400 * MIB}\n")
    assert available_memory(system) == 0


def test_old_control_groups_in_a_container(system):
    """The path is the host's, which the container does not see: its own group is at the top."""
    write(system / "proc/self/cgroup", "5:cpu:/docker/1\n4:memory:/docker/1\n")
    group = system / "sys/fs/cgroup/memory"
    write(group / "memory.limit_in_bytes", f"{500 * MIB}\n")
    write(group / "memory.usage_in_bytes", f"{100 * MIB}\n")
    write(group / "memory.stat", f"inactive_file {9 * MIB}\ntotal_inactive_file {10 * MIB}\ntotal_active_file 0\n")
    assert available_memory(system) == 410 * MIB


def test_address_space():
    """Under a limit of 2 GiB, less is left than that."""
    code = "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31)); from nerf.scene.memory import available_memory; print(available_memory())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < 2**31
