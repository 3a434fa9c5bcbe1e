"""Lines of the log, for people or for machines; both name the request they belong to."""

import logging
import time
from typing import Any, Literal

from reward_api.correlation import request_id

LogFormat = Literal["text", "json"]
TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def configure(style: LogFormat) -> None:
    """Sends all log lines to stderr, as text or as one JSON object a line. Needs structlog for JSON."""
    handler = logging.StreamHandler()
    handler.setFormatter(_json_formatter() if style == "json" else _TextFormatter(TEXT))
    logging.getLogger().handlers = [handler]
    # Each line would look up who wrote it, in which thread and process; none of ours says so.
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False


class _TextFormatter(logging.Formatter):
    _second, _shown = 0, ""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        if int(record.created) != self._second:
            self._second = int(record.created)
            self._shown = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self._second))
        return f"{self._shown},{int(record.msecs):03d}"

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name the base class has
        line = super().formatMessage(record)
        return f"{line} [{own}]" if (own := request_id.get()) else line


def _json_formatter() -> logging.Formatter:
    import structlog

    def add_request_id(logger: Any, method: str, event: Any) -> Any:
        if own := request_id.get():
            event["request_id"] = own
        return event

    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.ExtraAdder(),
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            add_request_id,
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(ensure_ascii=False),
        ],
    )
