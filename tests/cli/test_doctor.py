"""`dualmap doctor` on a healthy system, and on one with parts missing."""

import asyncio
import json
import sys
from typing import Any

from dualmap_cli.stack import Stack, StackOptions


async def doctor(*args: str) -> tuple[int, list[dict[str, Any]]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "dualmap_cli", "doctor", "--json", *args, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, json.loads(out)["findings"]


def bad(findings: list[dict[str, Any]]) -> list[str]:
    return [f"{finding['about']}: {finding['says']}" for finding in findings if finding["state"] == "bad"]


async def test_it_finds_nothing_wrong_and_then_what_is() -> None:
    async with Stack(StackOptions(routers=1, workers=2, engine_flags=("--no-kv-events",))) as stack:
        args = ("--redis-url", stack.redis_url, "--pool", "demo", "--router", stack.router_urls[0])
        status, findings = await doctor(*args)
        assert (status, bad(findings)) == (0, [])
        assert {"store", "functions", "rebalancer", "worker-1", "worker-2"} <= {f["about"] for f in findings}
        [lack] = [f for f in findings if f["about"] == "worker-1" and f["state"] == "warn"]
        assert lack["says"].startswith("its engine lacks kv-events")
        assert "--kv-events-config" in lack["do"]

        stack.children["worker-2"].process.kill()
        await stack.children["rebalancer-1"].stop()
        status, findings = await doctor(*args)
        assert status == 1
        said = " ".join(bad(findings))
        assert "worker-2" in said
        assert "nobody leads" in said

        status, findings = await doctor("--redis-url", stack.redis_url, "--pool", "elsewhere")
        assert status == 1
        assert any("none in this pool" in text for text in bad(findings))


async def test_a_store_that_is_not_there() -> None:
    status, findings = await doctor("--redis-url", "redis://127.0.0.1:1/0", "--router", "http://127.0.0.1:1")
    assert status == 1
    assert [finding["about"] for finding in findings] == ["store", "http://127.0.0.1:1"]
