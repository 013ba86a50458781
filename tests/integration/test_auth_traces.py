"""What keys leave behind: nothing; and routers that would ask nobody for one."""

import asyncio
import json
from pathlib import Path

import aiohttp

from dualmap_cli.stack import Stack, StackOptions

from ..otlp_receiver import Receiver
from ..waiting import eventually
from .conftest import chat, post
from .guarded import ACME, ADMIN, CHAT, write_keys
from .recording_engine import recording_engine


async def test_no_key_reaches_engine_logs_traces_or_errors(
    http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    receiver = Receiver()
    port = await receiver.start("127.0.0.1:0")
    wrong = "key-that-is-wrong-0007"
    flags = {"api_keys_file": write_keys(tmp_path / "keys.json"), "log_level": "debug"}
    async with recording_engine() as engine:
        options = StackOptions(
            routers=1, workers=1, rebalancers=0, engine_urls=[engine.url], router_flags=flags,
            worker_flags={"log_level": "debug"}, trace_endpoint=f"http://127.0.0.1:{port}",
        )  # fmt: skip
        async with Stack(options) as stack:
            url, said = stack.router_urls[0], []
            for headers in (
                {"authorization": f"Bearer {ACME}"}, {"x_api_key": ACME}, {"authorization": f"Bearer {wrong}"},
                {"authorization": f"Basic {wrong}"}, {"authorization": f"Bearer {ACME}", "x_api_key": wrong},
                {"authorization": f"Bearer {ACME}", "x_dualmap_policy": "best"},
            ):  # fmt: skip
                for path in (f"{CHAT}?api_key={wrong}", "/tokenize", "/debug/explain"):
                    _, answer, back = await post(http, url, path, chat("hello"), **headers)
                    said.append(json.dumps(answer) + str(back))
            await eventually(lambda: any(span.name == "engine" for span in receiver.spans))
            logs = "".join(path.read_text() for path in stack.logs.iterdir())
        assert '"request.failed"' not in logs
        # The query is the client's own, and goes where it sends it; keys of ours do not.
        asked = b"".join(engine.asked).replace(f"?api_key={wrong}".encode(), b"").decode("latin-1")
    await receiver.stop()
    assert len(engine.asked) >= 4
    for key in (ACME, wrong):
        for where, text in (
            ("engine", asked),
            ("log", logs),
            ("trace", str(receiver.spans)),
            ("answer", str(said)),
        ):
            assert key not in text, where
    assert "authorization" not in asked
    assert "x-api-key" not in asked


async def test_without_keys_credentials_are_the_engines(http: aiohttp.ClientSession) -> None:
    async with (
        recording_engine() as engine,
        Stack(StackOptions(routers=1, workers=1, rebalancers=0, engine_urls=[engine.url])) as stack,
    ):
        await post(http, stack.router_urls[0], CHAT, chat("hello"), authorization="Bearer the-engines")
        headers, body = engine.last()
        assert headers["authorization"] == "Bearer the-engines"
        assert "cache_salt" not in json.loads(body)


async def test_metrics_for_administrators_alone(http: aiohttp.ClientSession, tmp_path: Path) -> None:
    flags = {"api_keys_file": write_keys(tmp_path / "keys.json"), "open_metrics": "false"}
    async with Stack(StackOptions(routers=1, workers=1, rebalancers=0, router_flags=flags)) as stack:
        for key, status in ((ACME, 403), (ADMIN, 200), ("", 401)):
            headers = {"x-api-key": key} if key else {}
            async with http.get(f"{stack.router_urls[0]}/metrics", headers=headers) as response:
                assert response.status == status


async def test_a_router_that_would_let_anyone_in_does_not_start(tmp_path: Path) -> None:
    async with Stack(StackOptions(routers=0, workers=1, rebalancers=0)) as stack:
        for flags, said in (
            ({"host": "0.0.0.0"}, "--auth none"),
            ({"api_keys_file": tmp_path / "none.json"}, "none.json"),
            ({"auth": "keys"}, "api_keys_file"),
        ):
            child = stack.children[stack.start_router(**flags)]
            assert await child.wait(30) == 1
            assert said in child.log_tail()
            assert "Traceback" not in child.log_tail()
        stack.start_router(host="0.0.0.0", auth="none")
        assert await asyncio.wait_for(stack.event("router-4", "router.ready"), 30)
