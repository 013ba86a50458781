"""The load client: `python -m bench.router.client`, a process of its own that reads a Spec and prints a Result.

It reads the CPU clocks of the processes that the Spec names at the very start and end of its window, when load
is steady, so that neither its own start nor the warm-up counts.
"""

import asyncio
import gc
import os
import random
import sys
import time
from urllib.parse import urlsplit

import msgspec
import uvloop

from bench.router.clocks import cpu_s, machine_time
from bench.router.connection import Connection
from dualmap_cli.load.percentiles import percentile

_CONNECT_GUARD_S = 60.0
_RAMP_S = 1.0


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """What to send, to whom, and whose CPU to read."""

    url: str
    watch: dict[str, int]
    """Process ids by name."""
    mode: str = "open"
    """open: at `rate`; closed: `requests`, `connections` at a time; streams: `connections` long answers."""
    rate: float = 300.0
    warm_s: float = 0.5
    window_s: float = 5.0
    connections: int = 32
    requests: int = 0
    first: int = 0
    """Number of the first prompt: distinct runs send distinct prompts."""
    shared_prefixes: int = 0
    """How many prefixes, three quarters of the prompt, the prompts share; 0 for none."""
    body_bytes: int = 8192
    max_tokens: int = 1
    model: str = "sim-model"


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What happened within the window."""

    window_s: float
    requests: int
    errors: int
    events: int
    cpu_s: dict[str, float]
    machine_share: float
    client_share: float
    """CPU of this client, as a share of one core."""
    latency_p50_s: float | None
    latency_p99_s: float | None
    lag_p99_s: float | None
    """How late requests left."""


class Bodies:
    """Requests as bytes, ready to write."""

    def __init__(self, spec: Spec) -> None:
        host = urlsplit(spec.url).netloc
        stream = ',"stream":true' if spec.mode == "streams" else ""
        opening = f'{{"model":"{spec.model}","max_tokens":{spec.max_tokens}{stream},'
        opening += '"messages":[{"role":"user","content":"'
        closing = '"}]}'
        words = random.Random(7)
        size = spec.body_bytes - len(opening) - len(closing)
        text = "".join(words.choice("abcdefghijklmnop     ") for _ in range(size))
        self._head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\nuser-agent: bench\r\n"
            f"accept: application/json\r\nauthorization: Bearer bench\r\ncontent-type: application/json\r\n"
            f"content-length: {spec.body_bytes}\r\n\r\n{opening}"
        ).encode()
        self._shared = spec.shared_prefixes
        self._text = text.encode()
        self._split = size * 3 // 4
        self._closing = closing.encode()

    def make(self, number: int) -> bytes:
        """The request of that number."""
        mark = b"%012d" % number
        if not self._shared:
            return self._head + mark + self._text[len(mark) :] + self._closing
        group = b"%012d" % (number % self._shared)
        prefix = group + self._text[len(group) : self._split]
        return self._head + prefix + mark + self._text[self._split + len(mark) :] + self._closing


class Client:
    """Sends as the Spec says and keeps the window's books."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._bodies = Bodies(spec)
        self._loop = asyncio.get_running_loop()
        self._idle: list[Connection] = []
        self._all: list[Connection] = []
        self._latencies: list[float] = []
        self._lags: list[float] = []
        self._done = self._errors = 0
        self._number = spec.first
        self._left = 0
        self._busy = 0
        self._quiet = asyncio.Event()

    async def run(self) -> Result:
        """Connect, load, close."""
        spec = self._spec
        async with asyncio.timeout(_CONNECT_GUARD_S):
            while len(self._all) < spec.connections:
                await self._connect()
        if spec.mode == "open":
            return await self._open()
        return await (self._closed() if spec.mode == "closed" else self._streams())

    async def _connect(self) -> None:
        host, port = urlsplit(self._spec.url).netloc.rsplit(":", 1)
        _, connection = await self._loop.create_connection(lambda: Connection(self._ended), host, int(port))
        self._all.append(connection)
        self._idle.append(connection)

    def _ended(self, connection: Connection, status: int) -> None:
        self._latencies.append(time.monotonic() - connection.sent_s)
        self._done += 1
        self._errors += status != 200
        self._busy -= 1
        if status:
            self._idle.append(connection)
        if self._left and self._idle:
            self._left -= 1
            self._send(self._idle.pop())
        if not self._busy:
            self._quiet.set()

    def _send(self, connection: Connection) -> None:
        self._busy += 1
        self._quiet.clear()
        connection.send(self._bodies.make(self._number), time.monotonic())
        self._number += 1

    async def _open(self) -> Result:
        """Poisson arrivals that wait for nobody."""
        chance = random.Random(self._spec.first)
        due_s = time.monotonic()
        begin_s = due_s + self._spec.warm_s
        window: _Window | None = None
        while True:
            due_s += chance.expovariate(self._spec.rate)
            if window is None and due_s >= begin_s:
                window = self._begin()
            if window is not None and due_s >= window.start_s + self._spec.window_s:
                break
            wait_s = due_s - time.monotonic()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            self._lags.append(max(time.monotonic() - due_s, 0.0))
            while self._idle and not self._idle[-1].usable:
                self._idle.pop()
            if not self._idle:
                await self._connect()
            self._send(self._idle.pop())
        result = window.result()
        await self._drain()
        return result

    async def _closed(self) -> Result:
        """`requests` requests, as many at a time as there are connections."""
        window = self._begin()
        self._left = self._spec.requests - len(self._all)
        for connection in list(self._idle):
            self._idle.remove(connection)
            self._send(connection)
        await self._quiet.wait()
        result = window.result()
        await self._drain()
        return result

    async def _streams(self) -> Result:
        """One stream per connection, all under way for the whole window."""
        for connection in list(self._idle):
            self._send(connection)
            await asyncio.sleep(_RAMP_S / len(self._all))
        async with asyncio.timeout(_CONNECT_GUARD_S):
            while not all(connection.events for connection in self._all):  # noqa: ASYNC110 - once per window
                await asyncio.sleep(0.05)
        await asyncio.sleep(self._spec.warm_s)
        window = self._begin()
        await asyncio.sleep(self._spec.window_s)
        result = window.result()
        for connection in self._all:
            connection.close()
        return result

    async def _drain(self) -> None:
        async with asyncio.timeout(_CONNECT_GUARD_S):
            await self._quiet.wait()
        for connection in self._all:
            connection.close()

    def _begin(self) -> "_Window":
        return _Window(self)

    # For the window

    def counts(self) -> tuple[int, int, int]:
        """(requests answered, of them wrongly, events) so far."""
        return self._done, self._errors, sum(connection.events for connection in self._all)

    def clocks(self) -> dict[str, float]:
        """CPU seconds of whom the Spec watches."""
        return {name: cpu_s(pid) for name, pid in self._spec.watch.items()}

    def times(self) -> tuple[list[float], list[float]]:
        """(latencies, lags) so far."""
        return self._latencies, self._lags


class _Window:
    """What is counted, from its making to `result`."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._counts = client.counts()
        latencies, lags = client.times()
        latencies.clear()
        lags.clear()
        self._own_s = cpu_s(os.getpid())
        self._machine = machine_time()
        self.start_s = time.monotonic()
        self._clocks = client.clocks()

    def result(self) -> Result:
        clocks = self._client.clocks()
        seconds = time.monotonic() - self.start_s
        done, errors, events = (
            now - then for now, then in zip(self._client.counts(), self._counts, strict=True)
        )
        latencies, lags = (sorted(times) for times in self._client.times())
        return Result(
            window_s=seconds,
            requests=done,
            errors=errors,
            events=events,
            cpu_s={name: clocks[name] - before for name, before in self._clocks.items()},
            machine_share=machine_time().share_since(self._machine),
            client_share=(cpu_s(os.getpid()) - self._own_s) / seconds,
            latency_p50_s=percentile(latencies, 0.5),
            latency_p99_s=percentile(latencies, 0.99),
            lag_p99_s=percentile(lags, 0.99),
        )


async def load(spec: Spec) -> Result:
    """Run the client in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.router.client", stdin=-1, stdout=-1
    )
    out, _ = await process.communicate(msgspec.json.encode(spec))
    if process.returncode:
        raise RuntimeError(f"the load client ended with status {process.returncode}")
    return msgspec.json.decode(out, type=Result)


async def _main(spec: Spec) -> Result:
    return await Client(spec).run()  # made inside the loop, which it keeps


if __name__ == "__main__":
    gc.disable()
    given = msgspec.json.decode(sys.stdin.buffer.read(), type=Spec)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.stdout.buffer.write(msgspec.json.encode(runner.run(_main(given))))
