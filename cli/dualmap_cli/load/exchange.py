"""One request over HTTP, from sending to the last byte."""

import io
import time

import aiohttp
import msgspec

from dualmap_cli.load.options import LoadOptions
from dualmap_cli.load.record import RequestRecord
from dualmap_cli.load.sse import AnswerStream, choice_text, error_message, has_content
from dualmap_sim.workloads import TimedRequest

# aiohttp warns of larger bodies given as bytes, since it sends those in one piece.
_LARGE_BODY_BYTES = 2**20
_KEPT_ERROR_BYTES = 4096
# Below the 5 s after which vLLM closes an idle connection: a request sent into that closing would be lost.
_KEEPALIVE_S = 4.0


def open_session(options: LoadOptions) -> aiohttp.ClientSession:
    """A client that reuses connections and does nothing a load generator does not need."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=options.timeout_s / options.time_scale),
        skip_auto_headers=("User-Agent", "Accept-Encoding"),
        auto_decompress=False,
    )


class Exchange:
    """Sends one request and fills its record; network trouble becomes the record's error."""

    def __init__(self, http: aiohttp.ClientSession, options: LoadOptions) -> None:
        self._http = http
        self._options = options

    async def run(self, request: TimedRequest, body: bytes, record: RequestRecord, sent_at: float) -> None:
        """Do the whole exchange; only cancellation is raised, and leaves the record unfinished.

        Times count from `sent_at`, which is the first try's.
        """
        scale = self._options.time_scale
        try:
            async with self._http.post(
                f"{record.target}{request.path}",
                data=body if len(body) < _LARGE_BODY_BYTES else io.BytesIO(body),
                headers=self._options.headers(request),
            ) as response:
                record.status = response.status
                record.read_headers(response.headers, scale)
                if response.status != 200:
                    problem = await response.content.read(_KEPT_ERROR_BYTES)
                    record.fail(f"http_{response.status}", error_message(problem))
                elif response.content_type == "text/event-stream":
                    await self._read_stream(response, request, record, sent_at)
                else:
                    await self._read_whole(response, request, record, sent_at)
        except TimeoutError as error:
            record.fail("timeout", str(error) or None)
        except aiohttp.ClientConnectorError as error:
            record.fail("connect", str(error))
        except (aiohttp.ClientError, ConnectionError) as error:
            record.fail("disconnected" if record.status is None else "cut", str(error) or repr(error))
        record.e2e_s = (time.perf_counter() - sent_at) * scale
        record.finished = True

    async def _read_stream(
        self, response: aiohttp.ClientResponse, request: TimedRequest, record: RequestRecord, sent_at: float
    ) -> None:
        check = self._options.check
        stream = AnswerStream(gap_scale=self._options.time_scale, keep=check is not None)
        try:
            while data := await response.content.readany():
                stream.feed(data, time.perf_counter())
        finally:
            # What came before a cut or a timeout counts too.
            if stream.first_at is not None:
                record.ttft_s = (stream.first_at - sent_at) * self._options.time_scale
            record.events, record.gaps = stream.events, stream.gaps
            record.max_gap_s = stream.max_gap_s if stream.events > 1 else None
            record.duplicate = stream.answered_twice
            record.output_tokens = stream.events
            record.read_usage(stream.usage)
        if stream.error is not None:
            record.fail("stream_error", stream.error)
        elif not stream.dones:
            record.fail("cut", "the stream ended without [DONE]")
        elif stream.first_at is None:
            record.fail("empty", "the answer has no content")
        elif check is not None and not check(request, stream.text()):
            record.fail("wrong_text")

    async def _read_whole(
        self, response: aiohttp.ClientResponse, request: TimedRequest, record: RequestRecord, sent_at: float
    ) -> None:
        raw = await response.read()
        try:
            answer = msgspec.json.decode(raw, type=dict)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            record.fail("cut", f"not a JSON answer: {error}")
            return
        record.ttft_s = (time.perf_counter() - sent_at) * self._options.time_scale
        usage = answer.get("usage")
        record.read_usage(usage if isinstance(usage, dict) else {})
        if not has_content(answer):
            record.fail("empty", "the answer has no content")
        elif self._options.check is not None and not self._options.check(request, choice_text(answer)):
            record.fail("wrong_text")


async def first_model(url: str, api_key: str | None = None, timeout_s: float = 10.0) -> str:
    """The first model that an endpoint serves; raises aiohttp.ClientError or TimeoutError."""
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout_s)) as http,
        http.get(f"{url}/v1/models", headers=headers, raise_for_status=True) as response,
    ):
        try:
            models = msgspec.json.decode(await response.read())
            return str(models["data"][0]["id"])
        except (msgspec.MsgspecError, KeyError, IndexError, TypeError) as error:
            raise aiohttp.ClientPayloadError(f"{url}/v1/models names no model") from error
