"""Celery's settings, and messages as files."""

import json
from pathlib import Path

import pytest
from kombu import Connection

from gateway.jobs.config import JobsConfig
from gateway.jobs.courier import QUEUE, SCORE_CHUNK, Courier, celery_app, forgetful_settings
from gateway.jobs.job import Message

pytestmark = pytest.mark.unit


def config(folder: Path, **settings: object) -> JobsConfig:
    return JobsConfig.model_validate({"folder": folder} | settings)


def test_one_visibility_timeout_for_broker_and_results_and_none_longer_than_a_lease(tmp_path):
    conf = celery_app(config(tmp_path, broker="redis://127.0.0.1:1/0", lease_s=200.5)).conf
    assert conf.broker_transport_options["visibility_timeout"] == 201
    assert conf.result_backend_transport_options["visibility_timeout"] == 201


def test_nothing_but_json_is_read_or_written(tmp_path):
    conf = celery_app(config(tmp_path)).conf
    assert (conf.task_serializer, conf.accept_content) == ("json", ["json"])


def test_a_message_is_one_whole_file_with_two_references(tmp_path):
    courier = Courier(config(tmp_path))
    courier.send(Message("chunk", "token"))
    courier.close()
    (path,) = (tmp_path / "messages").iterdir()
    assert path.name.endswith(f".{QUEUE}.msg")
    assert len(path.read_bytes()) < 4096
    message = json.loads(path.read_text())
    assert message["headers"]["task"] == SCORE_CHUNK
    assert message["headers"]["argsrepr"] == "('chunk', 'token')"


def test_messages_are_read_in_the_order_they_were_sent_and_a_half_written_one_is_not(tmp_path):
    settings = config(tmp_path)
    courier = Courier(settings)
    for number in range(3):
        courier.send(Message(f"chunk-{number}", "token"))
    (tmp_path / "messages" / f".1_x.{QUEUE}.msg").write_bytes(b"")
    app = celery_app(settings)
    found = []
    with app.connection_for_read() as connection:
        assert isinstance(connection, Connection)
        channel = connection.channel()
        while (message := channel.basic_get(QUEUE)) is not None:
            assert message.payload is not None
            found.append(message.payload[0][0])
        channel.close()
    courier.close()
    app.close()
    assert found == ["chunk-0", "chunk-1", "chunk-2"]


def test_a_broker_that_is_away_does_not_hinder_the_start(tmp_path):
    (sentence,) = forgetful_settings(config(tmp_path, broker="redis://user:secret@127.0.0.1:1/0"))
    assert "127.0.0.1:1/0 cannot be read" in sentence
    assert "secret" not in sentence
    assert forgetful_settings(config(tmp_path)) == []
