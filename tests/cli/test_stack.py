"""The local system's parts run with the settings they are given, whatever the shell says."""

import pytest

from dualmap_cli.stack import Stack, StackOptions


async def test_settings_of_the_shell_reach_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {
        "LOG_LEVEL": "error",
        "LOG_FORMAT": "text",
        "ROUTER_PROT": "1",
        "WORKER_GRPC_PORT": "1",
        "POOL": "x",
    }
    for name, value in settings.items():
        monkeypatch.setenv(f"DUALMAP_{name}", value)
    async with Stack(StackOptions(routers=1, workers=2, rebalancers=1)) as stack:
        assert len(stack.router_urls) == 1


async def test_a_part_starts_again_as_it_was() -> None:
    async with Stack(StackOptions(routers=1, workers=1, rebalancers=0)) as stack:
        await stack.children["worker-1"].kill()
        await stack.event(stack.start_again("worker-1"), "worker.ready")
        await stack.wait_ready(1)
