"""Chat requests with an image to an OpenAI-compatible endpoint: deadline, retries, Retry-After."""

import asyncio
import base64
import random
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from io import BytesIO
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reward_api import ErrorCode, ItemError

_TRY_AGAIN = frozenset({408, 429, 500, 502, 503, 504})
_BACKOFF_S, _BACKOFF_CAP_S = 0.5, 10.0


def data_url(image: NDArray[np.uint8]) -> str:
    """The image as a PNG data URL; lossless, lightly compressed."""
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def chat_body(model: str, text: str, image_url: str, extra: Mapping[str, Any]) -> dict[str, Any]:
    """A chat completion request: one user message, the image before the text."""
    content = [{"type": "image_url", "image_url": {"url": image_url}}, {"type": "text", "text": text}]
    return {"model": model, "messages": [{"role": "user", "content": content}], **extra}


async def ask(
    http: httpx.AsyncClient, url: str, body: Mapping[str, Any], *, deadline_s: float, attempts: int
) -> str | ItemError:
    """The text of the first choice; an ItemError when no answer came within attempts and deadline.

    Connection failures and answers 408, 429 and 5xx are tried again with full jitter, not before Retry-After.
    """
    deadline = time.monotonic() + deadline_s
    fault = ItemError(ErrorCode.DEADLINE, f"{url} gave no answer within {deadline_s:g} s")
    for attempt in range(1, attempts + 1):
        pause = random.uniform(0, min(_BACKOFF_CAP_S, _BACKOFF_S * 2**attempt))
        left = deadline - time.monotonic()
        try:
            async with asyncio.timeout(left):
                response = await http.post(url, json=body, timeout=None)
        except TimeoutError:
            return ItemError(ErrorCode.DEADLINE, f"{url} gave no answer within {deadline_s:g} s")
        except httpx.TransportError as error:
            fault = ItemError(ErrorCode.NO_REPLICA, f"{url} cannot be reached: {type(error).__name__}: {error}")
        else:
            if response.status_code == 200:
                return _first_choice(response)
            fault = _refusal(response)
            if response.status_code not in _TRY_AGAIN:
                return fault
            pause += retry_after(response.headers)
        if attempt == attempts or time.monotonic() + pause >= deadline:
            break
        await asyncio.sleep(pause)
    return fault


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds the server wants to be left alone, given as a number or a date; 0 if it does not say."""
    text = headers.get("retry-after", "")
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    return max(0.0, ((date if date.tzinfo else date.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds())


def _first_choice(response: httpx.Response) -> str | ItemError:
    try:
        choice = response.json()["choices"][0]
        content = choice["message"]["content"]
    except (ValueError, LookupError, TypeError):
        content, choice = None, {}
    if not isinstance(content, str):
        return ItemError(ErrorCode.SCORER_FAILED, f"the judge's answer is no chat completion: {response.text[:200]!r}")
    if choice.get("finish_reason") == "length":
        return ItemError(ErrorCode.SCORER_FAILED, f"the judge's answer was cut at max_tokens: {content[-200:]!r}")
    return content


def _refusal(response: httpx.Response) -> ItemError:
    code = ErrorCode.SCORER_FAILED
    if response.status_code == 429:
        code = ErrorCode.OVERLOADED
    elif response.status_code in _TRY_AGAIN:
        code = ErrorCode.NO_REPLICA
    return ItemError(code, f"the judge answered {response.status_code}: {response.text[:200]!r}")
