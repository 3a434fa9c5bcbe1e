"""Who asks: the name under which a client takes its share of the queues, and the tokens that carry names."""

from collections.abc import Mapping

from starlette.requests import Request

from reward_api.client import CLIENT_HEADER, TOKEN_VARIABLE
from reward_api.http import Tokens

CLIENT_TOKENS_VARIABLE = "REWARD_CLIENT_TOKENS"
_LONGEST = 64


def client_of(request: Request, token_name: str) -> str:
    """The name of its token, which nobody else can use; else its header X-Client-Id; else its address."""
    sent = request.headers.get(CLIENT_HEADER, "")[:_LONGEST]
    address = request.client.host if request.client is not None else ""
    return token_name or sent or address


def tokens_of(environment: Mapping[str, str]) -> Tokens:
    """The tokens of callers: REWARD_TOKEN, and REWARD_CLIENT_TOKENS as "NAME=TOKEN NAME=TOKEN".

    Raises ValueError naming the variable.
    """
    single = environment.get(TOKEN_VARIABLE) or None
    named = {}
    for number, part in enumerate(environment.get(CLIENT_TOKENS_VARIABLE, "").split(), start=1):
        name, equals, token = part.partition("=")
        if not (name and equals and token):
            raise ValueError(f"{CLIENT_TOKENS_VARIABLE}: part {number} is not NAME=TOKEN")
        named[name] = token
    if not named:
        return single
    return named | ({"": single} if single else {})
