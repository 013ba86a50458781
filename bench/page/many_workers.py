"""Many real workers in one process, for a pool that one machine has no room for as processes: `python -m ... URL...`

Each is a `WorkerApp` with its own gRPC port, telemetry and engine; only the interpreter is shared, and reports are
half as frequent as in production.
"""

import asyncio
import json
import sys

from dualmap_service.lifecycle import run_service
from dualmap_worker.app import WorkerApp
from dualmap_worker.settings import WorkerSettings

_REPORT_S = 0.2


def main(redis_url: str, pool: str, engine_urls: list[str]) -> int:
    """Run one worker beside each engine until told to stop."""

    async def run(stop: asyncio.Event) -> None:
        apps = [
            WorkerApp(
                WorkerSettings(
                    redis_url=redis_url,
                    pool=pool,
                    instance=f"worker-{number}",
                    engine_url=url,
                    report_period_s=_REPORT_S,
                ),
                stop,
            )
            for number, url in enumerate(engine_urls, start=1)
        ]
        print(json.dumps({"event": "workers.starting", "workers": len(apps)}), flush=True)
        await asyncio.gather(*(app.run() for app in apps))

    return run_service(run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
