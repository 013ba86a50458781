"""Logs: dotted event names with their facts in `extra`, as JSON lines or as text. No prompts, no keys."""

import json
import logging
import sys
from datetime import UTC, datetime

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def setup_logs(level: str, style: str, service: str) -> None:
    """Send all logs to standard error in one shape."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines(service) if style == "json" else _Text())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # Their INFO is about themselves; ours says what matters at start and stop.
    for chatty in ("aiohttp.access", "asyncio"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def of_request(request_id: str, trace_id: str = "", **more: object) -> dict[str, object]:
    """The facts of a line about one request; a trace's id, where there is one, leads to its spans."""
    return {"request_id": request_id, **({"trace_id": trace_id} if trace_id else {}), **more}


def facts(record: logging.LogRecord) -> dict[str, object]:
    """What was passed as `extra`."""
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


class _JsonLines(logging.Formatter):
    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "service": self._service,
            "event": record.getMessage(),
            **facts(record),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        said = " ".join(f"{key}={value}" for key, value in facts(record).items())
        text = f"{record.levelname.lower():7} {record.getMessage()} {said}".rstrip()
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text
