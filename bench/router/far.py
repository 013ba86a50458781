"""A way to a server that takes longer: `python -m bench.router.far --to HOST:PORT --ms 0.5` holds back each way.

Threads that sleep, since an event loop's timers count whole milliseconds.
"""

import argparse
import json
import queue
import socket
import threading
import time

_READ_BYTES = 65536


def _carry(source: socket.socket, target: socket.socket, delay_s: float) -> None:
    """Pass on what comes, so much later, in order; returns when the source has ended."""
    held: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()

    def pass_on() -> None:
        while True:
            due_s, data = held.get()
            time.sleep(max(due_s - time.perf_counter(), 0.0))
            try:
                if not data:
                    target.shutdown(socket.SHUT_WR)
                    return
                target.sendall(data)
            except OSError:
                return

    threading.Thread(target=pass_on, daemon=True).start()
    data = b"-"
    while data:
        try:
            data = source.recv(_READ_BYTES)
        except OSError:
            data = b""
        held.put((time.perf_counter() + delay_s, data))


def main() -> None:
    """Serve until ended."""
    parser = argparse.ArgumentParser(prog="python -m bench.router.far", description=__doc__)
    parser.add_argument("--to", required=True, metavar="HOST:PORT")
    parser.add_argument("--ms", type=float, required=True, help="each way")
    given = parser.parse_args()
    host, _, port = given.to.rpartition(":")
    server = socket.create_server(("127.0.0.1", 0))
    print(json.dumps({"port": server.getsockname()[1]}), flush=True)
    while True:
        near, _ = server.accept()
        far = socket.create_connection((host, int(port)))
        for source, target in ((near, far), (far, near)):
            source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=_carry, args=(source, target, given.ms / 1e3), daemon=True).start()


if __name__ == "__main__":
    main()
