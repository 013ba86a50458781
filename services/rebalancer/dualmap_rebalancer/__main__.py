"""`python -m dualmap_rebalancer`: a rebalancer with settings from the environment."""

import os
import sys

from dualmap_rebalancer.app import run
from dualmap_rebalancer.settings import RebalancerSettings
from dualmap_service.errors import SettingsError
from dualmap_service.lifecycle import run_service
from dualmap_service.logs import setup_logs
from dualmap_service.settings import load_settings


def main() -> int:
    """Run until SIGTERM; returns the exit status, 2 for settings without meaning."""
    try:
        settings = load_settings(RebalancerSettings, "rebalancer", os.environ).settings
    except SettingsError as exc:
        print(f"error: {exc}", file=sys.stderr)  # noqa: T201 - logs are not set up yet
        return 2
    setup_logs(settings.log_level, settings.log_format, "rebalancer")
    return run_service(lambda stop: run(settings, stop))


if __name__ == "__main__":
    sys.exit(main())
