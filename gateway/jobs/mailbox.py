"""Messages as files of a folder: kombu's filesystem transport, with messages that appear whole."""

import os
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

from kombu.transport import filesystem
from kombu.utils.json import dumps


class Channel(filesystem.Channel):
    """kombu creates a message file and then fills it: a reader in between finds it empty, and its worker ends.

    Names begin with the wall clock instead of the time since the machine's start, so that their order outlives one.
    """

    # kombu's own classes disagree on the name of the second parameter.
    def _put(self, queue: str, payload: dict[str, Any], **options: Any) -> None:  # type: ignore[override]
        name = f"{time.time_ns()}_{uuid4().hex}.{queue}.msg"
        aside = Path(self.data_folder_out) / f".{name}"  # not looked at: what precedes its first dot is empty
        aside.write_text(dumps(payload), encoding="utf-8")
        os.replace(aside, aside.with_name(name))


class Transport(filesystem.Transport):
    """Celery's `broker_transport` by the name "gateway.jobs.mailbox:Transport"."""

    Channel = Channel
