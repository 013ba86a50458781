"""Child processes: their output, their end, and that they end with their parent."""

import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from dualmap_service.child import Child, start_child

from ...waiting import eventually

SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)",
]


async def test_what_is_not_to_be_inherited_stays_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEEP_A", "1")
    monkeypatch.setenv("DROP_B", "1")
    code = (
        "import os; print(sorted(n for n in os.environ if n[:4] in ('KEEP', 'DROP')), 'PATH' in os.environ)"
    )
    child = start_child(
        [sys.executable, "-c", code], "c", tmp_path / "log", {"DROP_C": "1"},
        inherited=lambda name: not name.startswith("DROP"),
    )  # fmt: skip
    assert await child.wait(20.0) == 0
    assert child.log_tail().strip() == "['DROP_C', 'KEEP_A'] True"


async def test_output_status_and_environment(tmp_path: Path) -> None:
    code = "import os, sys; print(os.environ['GIVEN'], os.getcwd()); sys.stderr.write('bad'); sys.exit(3)"
    log = tmp_path / "log"
    child = start_child([sys.executable, "-c", code], "c", log, {"GIVEN": "yes"}, tmp_path)
    assert await child.wait(20.0) == 3
    assert not child.running
    assert f"yes {tmp_path}" in child.log_tail()
    assert child.log_tail(3) in ("bad", f"{tmp_path}\n"[-3:])
    assert await child.stop() == 3


async def test_stop_asks_first(tmp_path: Path) -> None:
    child = start_child(SLEEP, "c", tmp_path / "log")
    await eventually(lambda: "up" in child.log_tail())
    assert await child.wait(0.01) is None
    assert await child.stop() == -signal.SIGTERM


async def test_and_then_insists(tmp_path: Path) -> None:
    child = start_child(STUBBORN, "c", tmp_path / "log")
    await eventually(lambda: "up" in child.log_tail())
    assert await child.stop(grace_s=0.1) == -signal.SIGKILL


async def test_without_a_log() -> None:
    child = start_child([sys.executable, "-c", "print(1)"], "c")
    assert await child.wait(20.0) == 0
    assert child.log_tail() == ""


async def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    code = (
        "import time\nfrom pathlib import Path\nfrom dualmap_service.child import start_child\n"
        f"child = start_child({SLEEP!r}, 'grandchild')\nprint(child.pid, flush=True)\ntime.sleep(600)"
    )
    parent = start_child([sys.executable, "-c", code], "parent", tmp_path / "log")
    pid = int(await eventually(lambda: parent.log_tail().strip()))
    assert psutil.pid_exists(pid)
    os.kill(parent.pid, signal.SIGKILL)
    parent.process.wait()

    def gone() -> bool:
        try:
            return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    await eventually(gone)


async def test_a_child_starts_without_a_fork(tmp_path: Path) -> None:
    # A fork while gRPC runs leaves its event engine's descriptors half closed in the child, which then dies of it.
    forks: list[str] = []
    os.register_at_fork(before=lambda: forks.append("forked"))
    child = start_child([sys.executable, "-c", "print('up')"], "c", tmp_path / "log")
    assert await child.wait(20.0) == 0
    assert not forks


async def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    child = start_child([str(tmp_path / "missing")], "c", tmp_path / "log")
    assert await child.wait(20.0) == 1
    assert child.log_tail() == f"cannot start {tmp_path / 'missing'}: No such file or directory\n"


FAMILY = """
import os, signal, subprocess, sys, time
sleep = [sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"]
own_group = subprocess.Popen(sleep, start_new_session=True)
plain = subprocess.Popen(sleep)
print(os.getpid(), own_group.pid, plain.pid, flush=True)
time.sleep(600)
"""
"""A program with two processes of its own that take no SIGTERM, one of them in another session."""


async def family(tmp_path: Path) -> tuple[Child, list[psutil.Process]]:
    child = start_child([sys.executable, "-c", FAMILY], "c", tmp_path / "log", kept=True)
    pids = await eventually(lambda: [int(pid) for pid in child.log_tail().split()])
    return child, [psutil.Process(pid) for pid in pids]


def ended(processes: list[psutil.Process]) -> bool:
    return not any(is_alive(process) for process in processes)


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_a_kept_child_is_asked_and_leaves_nothing(tmp_path: Path) -> None:
    child, processes = await family(tmp_path)
    assert await child.stop() == -signal.SIGTERM
    assert ended(processes)


async def test_what_a_kept_program_leaves_behind_ends_with_it(tmp_path: Path) -> None:
    child, processes = await family(tmp_path)
    processes[0].kill()
    assert await child.wait(10.0) == -signal.SIGKILL
    assert ended(processes)


async def test_a_stopped_one_is_killed_with_all_of_its_processes(tmp_path: Path) -> None:
    child, processes = await family(tmp_path)
    for process in processes:
        process.suspend()
    await eventually(lambda: all(process.status() == psutil.STATUS_STOPPED for process in processes))
    assert await child.stop(grace_s=0.1) == -signal.SIGKILL
    assert ended(processes)


async def test_a_keeper_that_is_killed_leaves_nothing_once_that_is_seen(tmp_path: Path) -> None:
    child, processes = await family(tmp_path)
    child.process.kill()
    await child.wait(10.0)
    await child.kill()
    # All but what went into a session of its own.
    await eventually(lambda: ended([processes[0], processes[2]]))
    processes[1].kill()


async def test_a_kept_family_dies_with_its_grandparent(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    code = (
        "import os, time\nfrom pathlib import Path\nfrom dualmap_service.child import start_child\n"
        f"start_child([{sys.executable!r}, '-c', {FAMILY!r}], 'c', output=1, kept=True, scratch={str(scratch)!r})\n"
        "time.sleep(600)"
    )
    parent = start_child([sys.executable, "-c", code], "parent", tmp_path / "log")
    pids = await eventually(lambda: [int(pid) for pid in parent.log_tail().split()])
    processes = [psutil.Process(pid) for pid in pids]
    os.kill(parent.pid, signal.SIGKILL)
    parent.process.wait()
    await eventually(lambda: ended(processes))
    await eventually(lambda: not scratch.exists())


async def test_shared_memory_of_those_that_were_killed_is_removed(tmp_path: Path) -> None:
    code = (
        "import time\nfrom multiprocessing.shared_memory import SharedMemory\n"
        "memory = SharedMemory(create=True, size=4096)\nprint(memory.name, flush=True)\ntime.sleep(600)"
    )
    child = start_child([sys.executable, "-c", code], "c", tmp_path / "log", kept=True)
    memory = Path("/dev/shm") / await eventually(lambda: child.log_tail().strip())
    assert memory.exists()
    await child.kill()
    assert not memory.exists()


@pytest.mark.parametrize("code", [0, 3])
async def test_a_kept_program_ends_by_itself(tmp_path: Path, code: int) -> None:
    child = start_child([sys.executable, "-c", f"raise SystemExit({code})"], "c", tmp_path / "log", kept=True)
    assert await child.wait(20.0) == code


async def test_a_kept_program_that_is_not_there(tmp_path: Path) -> None:
    child = start_child([str(tmp_path / "missing")], "c", tmp_path / "log", kept=True)
    assert await child.wait(20.0) == 1
    assert child.log_tail() == f"cannot start {tmp_path / 'missing'}: No such file or directory\n"
