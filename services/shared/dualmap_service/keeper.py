"""Stands between a service and a program with processes of its own, so that none of them outlives the service.

Run as `python -I -S keeper.py PARENT FOLDER PROGRAM ARGUMENT...`, so with the standard library only. Whatever the
program leaves behind becomes this process's child (PR_SET_CHILD_SUBREAPER), also out of another session or group.

1. The program ends: what it left behind is killed, and this process ends as the program did.
2. SIGTERM and SIGINT go on to the program.
3. SIGUSR1 kills everything; the kernel sends it when the parent is gone (PR_SET_PDEATHSIG), and then FOLDER is
   removed too, unless that is an empty argument.
"""

import ctypes
import os
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

KILL_ALL = signal.SIGUSR1
"""What makes a keeper kill all that it keeps."""
_PDEATHSIG, _CHILD_SUBREAPER = 1, 36
_TRACKER = b"multiprocessing.resource_tracker"
_TRACKERS_S = 2.0
"""How long Python's resource trackers may take to remove the shared memory of those that were killed."""
_WATCHED = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, KILL_ALL)


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        sys.exit(f"prctl({option}): {os.strerror(ctypes.get_errno())}")


def _start(argv: list[str]) -> int:
    """Fork the program; returns its process id."""
    keeper = os.getpid()
    program = os.fork()
    if program:
        return program
    _prctl(_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != keeper:
        os._exit(1)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
    try:
        os.execvp(argv[0], argv)
    except OSError as exc:
        sys.stderr.write(f"cannot start {argv[0]}: {exc.strerror}\n")
        sys.stderr.flush()
        os._exit(1)


def _children() -> list[int]:
    """Processes whose parent this is."""
    own, found = str(os.getpid()), []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # The name in parentheses may hold anything; the parent is the second word behind it.
            parent = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[1]
        except OSError:
            continue
        if parent == own:
            found.append(int(entry.name))
    return found


def _is_tracker(child: int) -> bool:
    try:
        return _TRACKER in Path(f"/proc/{child}/cmdline").read_bytes()
    except OSError:
        return False


def _kill_all(program: int) -> int | None:
    """Kill children until there are none, those of a killed one next; returns the program's status if it was there."""
    status, deadline_s = None, time.monotonic() + _TRACKERS_S
    while children := _children():
        late = time.monotonic() > deadline_s
        doomed = [child for child in children if late or not _is_tracker(child)]
        # A child that nobody has waited for keeps its number: this meets nobody else.
        for child in doomed:
            os.kill(child, signal.SIGKILL)
        for child in doomed:
            _, ended = os.waitpid(child, 0)
            if child == program:
                status = ended
        if not doomed:
            # They end by themselves once those are gone whom they serve.
            os.waitpid(-1, os.WNOHANG)
            time.sleep(0.01)
    return status


def _reap(program: int) -> int | None:
    """Wait for what has ended; returns the program's status once it has."""
    while True:
        try:
            child, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return None
        if child == program:
            return status
        if not child:
            return None


def _keep(program: int) -> int:
    """Until nothing is left; returns the program's wait status."""
    while True:
        number = signal.sigwait(_WATCHED)
        if number == signal.SIGCHLD:
            status = _reap(program)
            if status is not None:
                _kill_all(program)
                return status
        elif number == KILL_ALL:
            killed = _kill_all(program)
            return killed if killed is not None else int(signal.SIGKILL)
        else:
            os.kill(program, number)


def _end_as(status: int) -> None:
    """End with the exit status, or by the signal, of a wait status."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        os._exit(code)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if -code not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(-code, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [-code])
    os.kill(os.getpid(), -code)
    os._exit(128 - code)


def main() -> None:
    """Start the program and keep it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    _prctl(_CHILD_SUBREAPER, 1)
    _prctl(_PDEATHSIG, KILL_ALL)
    parent, folder = int(sys.argv[1]), sys.argv[2]
    if os.getppid() != parent:
        sys.exit(1)
    status = _keep(_start(sys.argv[3:]))
    if folder and os.getppid() != parent:
        shutil.rmtree(folder, ignore_errors=True)
    _end_as(status)


if __name__ == "__main__":
    main()
