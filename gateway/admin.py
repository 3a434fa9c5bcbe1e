"""Changing the replicas while the gateway works: `GET` and `POST /v1/admin/replicas`."""

from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gateway.config import ServiceUrl
from gateway.scoring import Gateway
from reward_api import EnvelopeError, ErrorCode
from reward_api.http import Tokens, check_token

MAX_BODY_BYTES = 2**20
_PATH = "/v1/admin/replicas"


class ReplicaChange(BaseModel):
    """The replicas of one reward: all of them anew, or some more and some fewer."""

    model_config = ConfigDict(extra="forbid")

    reward: str
    replicas: list[ServiceUrl] | None = Field(None, description="from now on exactly these")
    add: list[ServiceUrl] = []
    remove: list[ServiceUrl] = []

    @model_validator(mode="after")
    def _one_way(self) -> "ReplicaChange":
        if (self.replicas is None) == (not self.add and not self.remove):
            raise ValueError("give either replicas, or add and remove")
        return self

    def applied_to(self, endpoints: list[str]) -> list[str]:
        """What `endpoints` become. Adding what is there and removing what is not changes nothing."""
        if self.replicas is not None:
            return list(dict.fromkeys(self.replicas))
        return list(dict.fromkeys(url for url in [*endpoints, *self.add] if url not in self.remove))


def install_admin(app: FastAPI, gateway: Gateway, token: Tokens) -> None:
    """Adds both routes to `app`; they ask for the same token as the others."""

    @app.get(_PATH, summary="The replicas of all rewards and how they are", openapi_extra=_GET_OPENAPI)
    async def show(request: Request) -> Response:
        check_token(request, token)
        return _state(gateway)

    @app.post(
        _PATH,
        summary="Change the replicas of a reward; the configuration file is not touched",
        openapi_extra=_POST_OPENAPI,
        max_body_size=MAX_BODY_BYTES,
    )
    async def change(request: Request) -> Response:
        check_token(request, token)
        try:
            wanted = ReplicaChange.model_validate_json(await request.body())
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
            raise EnvelopeError(422, "Invalid request", faults) from None
        roster = gateway.rosters.get(wanted.reward)
        if roster is None:
            detail = f"reward {wanted.reward!r} is not served here; there are {', '.join(sorted(gateway.rosters))}"
            raise EnvelopeError(422, "Unknown reward", detail, code=ErrorCode.UNKNOWN_REWARD)
        await roster.change(wanted.applied_to(roster.endpoints))
        return _state(gateway)


def _state(gateway: Gateway) -> Response:
    rewards = {
        name: {
            "endpoints": roster.endpoints,
            "replicas": [
                {
                    "url": replica.url,
                    "up": replica.up,
                    "version": replica.version,
                    "retiring": replica.retiring,
                    "inflight_items": replica.inflight_items,
                    "ejections": replica.ejections,
                }
                for replica in gateway.dispatchers[name].replicas.replicas
            ],
        }
        for name, roster in gateway.rosters.items()
    }
    return Response(msgspec.json.encode({"rewards": rewards}), media_type="application/json")


_STATE: dict[str, Any] = {"description": "each reward's endpoints and the replicas they stand for"}
_PROBLEM: dict[str, Any] = {"content": {"application/problem+json": {}}}
_GET_OPENAPI: dict[str, Any] = {"responses": {"200": _STATE, "401": {"description": "no token", **_PROBLEM}}}
_POST_OPENAPI: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": ReplicaChange.model_json_schema()}}},
    "responses": {
        **_GET_OPENAPI["responses"],
        "413": {"description": "more than a mebibyte"},
        "422": {"description": "no such reward, or a change that cannot be read", **_PROBLEM},
    },
}
