"""The engine as its worker reaches it: OpenAI's HTTP, whatever engine speaks it."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import aiohttp
import msgspec
from multidict import CIMultiDict
from yarl import URL

from dualmap.types import EngineLoad
from dualmap_service.http_headers import passed_on
from dualmap_worker.errors import (
    BadAnswerError,
    EngineDiedError,
    EngineError,
    EngineLostError,
    EngineTimeoutError,
)


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine says it is."""

    model: str
    adapters: tuple[str, ...]
    max_model_len: int
    aliases: tuple[str, ...] = ()
    """Further names that it serves the model by."""


class _Model(msgspec.Struct):
    id: str
    parent: str | None = None
    root: str | None = None
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: list[_Model]


class _Version(msgspec.Struct):
    version: str


_models = msgspec.json.Decoder(_Models)
_version = msgspec.json.Decoder(_Version)
_SAMPLE = re.compile(
    r"^(vllm:[a-z_:]+)(?:\{([^}]*)\})? ([0-9]{1,15}(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,2})?)(?=\s|$)",
    re.MULTILINE,
)
_METRICS_S = 2.0
_LABEL = re.compile(r'(\w+)="([^"]*)"')


class Engine:
    """An HTTP client for one engine."""

    def __init__(self, url: str, api_key: str, first_byte_timeout_s: float, max_connections: int) -> None:
        self.url = url.rstrip("/")
        self._key = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._first_byte_timeout_s = first_byte_timeout_s
        self._max_connections = max_connections
        self._http: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Make the connection pool; needs the running loop."""
        self._http = aiohttp.ClientSession(
            # vLLM's server closes idle connections after 5 s: be first, so that no request meets a closing one.
            connector=aiohttp.TCPConnector(limit=self._max_connections, keepalive_timeout=4.0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=3.0, sock_read=self._first_byte_timeout_s),
            auto_decompress=False,
            read_bufsize=1 << 18,
            skip_auto_headers=("accept-encoding", "user-agent"),
        )

    async def close(self) -> None:
        """Close all connections: the engine aborts what it still runs for us."""
        if self._http is not None:
            await self._http.close()

    @property
    def http(self) -> aiohttp.ClientSession:
        """The open client."""
        if self._http is None:
            raise RuntimeError("the engine's client is not open")
        return self._http

    @asynccontextmanager
    async def request(
        self, method: str, path: str, headers: Iterable[tuple[str, str]] = (), body: bytes = b""
    ) -> AsyncIterator["EngineAnswer"]:
        """Send a request; leaving the context before the answer's end aborts it in the engine."""
        # A header may stand there more than once; the engine's key replaces whatever a client sent.
        sent = CIMultiDict(headers)
        sent.update(self._key)
        try:
            async with self.http.request(
                method,
                # As it is: a URL that is decoded and tidied up could name another endpoint.
                URL(self.url + path, encoded=True),
                data=body or None,
                headers=sent,
                allow_redirects=False,
            ) as response:
                with _ends_with_its_connection(response):
                    yield EngineAnswer(response)
        except (aiohttp.ConnectionTimeoutError, aiohttp.ClientConnectorError) as exc:
            # The request never left; a host that is gone does not even refuse.
            raise EngineLostError(f"{self.url} cannot be reached: {exc!r}") from exc
        except (TimeoutError, aiohttp.ServerTimeoutError) as exc:
            raise EngineTimeoutError(f"{self.url} did not answer in time: {exc!r}") from exc
        except aiohttp.ClientResponseError as exc:
            raise BadAnswerError(f"{self.url} broke HTTP: {exc.message}") from exc
        except (aiohttp.ClientError, OSError) as exc:
            raise EngineDiedError(f"{self.url} was lost: {exc!r}") from exc

    async def healthy(self, timeout_s: float = 2.0) -> bool:
        """Whether the engine says it serves."""
        try:
            async with asyncio.timeout(timeout_s), self.request("GET", "/health") as answer:
                await answer.read()
                return answer.status == 200
        except (TimeoutError, EngineLostError, EngineTimeoutError, BadAnswerError):
            return False

    async def info(self) -> EngineInfo:
        """What it serves; EngineLostError when the engine cannot be asked."""
        async with self.request("GET", "/v1/models") as answer:
            body = await answer.read()
        try:
            models = _models.decode(body).data
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise BadAnswerError(f"/v1/models is not a list of models: {body[:100]!r}") from exc
        if not models:
            raise BadAnswerError("/v1/models is empty")
        base = next((model for model in models if model.parent is None), models[0])
        adapters = tuple(model.id for model in models if model.parent is not None)
        aliases = tuple(model.id for model in models if model.parent is None and model is not base)
        return EngineInfo(base.id, adapters, base.max_model_len or 0, aliases)

    async def version(self) -> str:
        """Its release, as vLLM tells it; empty where an engine has no such thing."""
        try:
            async with asyncio.timeout(_METRICS_S), self.request("GET", "/version") as answer:
                return _version.decode(await answer.read()).version if answer.status == 200 else ""
        except (TimeoutError, EngineError, msgspec.DecodeError, UnicodeDecodeError):
            return ""

    async def load(self) -> tuple[EngineLoad, int]:
        """(load, tokens that the KV cache holds) from /metrics; zeros for what it does not say."""
        try:
            # Shorter than an answer may take: a hung engine must be found out.
            async with asyncio.timeout(_METRICS_S), self.request("GET", "/metrics") as answer:
                text = (await answer.read()).decode("utf-8", "replace")
        except TimeoutError as exc:
            raise EngineTimeoutError("the engine's metrics did not come in time") from exc
        return parse_metrics(text)


def parse_metrics(text: str) -> tuple[EngineLoad, int]:
    """(load, tokens that the KV cache holds) of an engine's metrics.

    Each data-parallel rank has samples of its own: requests and room add up, but the fullest rank is the one
    that makes a request wait.
    """
    values: dict[str, list[float]] = {}
    kv_tokens = 0
    for name, labels, value in _SAMPLE.findall(text):
        values.setdefault(name, []).append(float(value))
        if name == "vllm:cache_config_info":
            config = dict(_LABEL.findall(labels))
            blocks, size = config.get("num_gpu_blocks", ""), config.get("block_size", "")
            if blocks.isdecimal() and size.isdecimal():
                kv_tokens += int(blocks) * int(size)
    load = EngineLoad(
        running=int(sum(values.get("vllm:num_requests_running", ()))),
        waiting=int(sum(values.get("vllm:num_requests_waiting", ()))),
        kv_use=max(values.get("vllm:kv_cache_usage_perc", ()), default=0.0),
    )
    return load, kv_tokens


@contextmanager
def _ends_with_its_connection(response: aiohttp.ClientResponse) -> Iterator[None]:
    """Fail the body of a connection that has ended, if nobody else has.

    aiohttp's parser hangs up over a chunk that is none and tells only who waits for a head: who reads the body
    would wait for ever.
    """

    def ended(closed: "asyncio.Future[None] | None") -> None:
        if not response.content.is_eof() and response.content.exception() is None:
            response.content.set_exception(aiohttp.ClientPayloadError("it ended in the middle of its body"))

    protocol = response.connection.protocol if response.connection is not None else None
    if protocol is None:
        yield  # all of it has come
        return
    if protocol.closed is None:
        ended(None)
        yield
        return
    # One future for all answers of a connection; its exception is for those that asked for it, which is nobody.
    protocol.closed.remove_done_callback(_overlook)
    protocol.closed.add_done_callback(_overlook)
    protocol.closed.add_done_callback(ended)
    try:
        yield
    finally:
        if protocol.closed is not None:
            protocol.closed.remove_done_callback(ended)


def _overlook(closed: "asyncio.Future[None]") -> None:
    closed.exception()


class EngineAnswer:
    """An answer of the engine, its body still to be read."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status

    @property
    def is_stream(self) -> bool:
        """Whether the body is a stream of events."""
        return self._response.content_type == "text/event-stream"

    @property
    def headers(self) -> list[tuple[str, str]]:
        """What goes on to the client; what is not ASCII fits neither the frames nor the client's answer."""
        return passed_on([(name.lower(), value) for name, value in self._response.headers.items()])

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives."""
        return self._response.content.iter_any()

    async def read(self) -> bytes:
        """The whole body."""
        return await self._response.read()
