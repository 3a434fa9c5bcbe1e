"""Writes the seed corpus: one small file for each way a decoder can go. `python tests/fuzz/seeds.py`"""

import base64
import io
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from PIL import Image
from targets import BOUNDARY

from reward_api import Item, ItemError, Score
from reward_api.wire import JSON, MSGPACK, encode_request, encode_response

CORPUS = Path(__file__).parent / "corpus"
PIXELS = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    return saved(Image.fromarray(PIXELS).convert(mode), kind, **options)


def form(*parts: tuple[str, bytes, str]) -> bytes:
    """Parts are (name, content, further header text)."""
    lines = b""
    for name, content, more in parts:
        lines += (
            f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + content + b"\r\n"
        )
    return lines + f"--{BOUNDARY}--\r\n".encode()


def envelope(**item: Any) -> dict[str, Any]:
    image = {"base64": base64.b64encode(picture("PNG")).decode()}
    return {"items": [{"image": image, "prompt": "a cat", "rewards": ["ocr"], **item}], "deterministic": True}


METADATA = {
    "tag": "counting",
    "include": [{"class": "cross", "count": 2, "position": ["left of", 0]}],
    "x": [1.5, None],
}
PNG = picture("PNG")
UPLOAD = '; filename="x.png"\r\nContent-Type: image/png'
OUTCOMES = [{"geneval": Score(0.5, METADATA), "ocr": ItemError("missing_text", "no text in quotes: ü")}]

SEEDS: dict[str, dict[str, bytes]] = {
    "request_msgpack": {
        "pixels": encode_request([Item(PIXELS, "a cat", METADATA, ("geneval", "ocr"))], deterministic=True),
        "two": encode_request([Item(PIXELS, "a"), Item(PIXELS[:1], "b", {}, ("ocr",))]),
        "file": msgspec.msgpack.encode({"items": [{"image": picture("JPEG"), "prompt": "a"}], "rewards": ["ocr"]}),
        "short_pixels": msgspec.msgpack.encode(
            {"items": [{"image": {"shape": [5, 4, 3], "data": b"123"}, "prompt": "a"}]}
        ),
        "extension": b"\x81\xa5items\x91\x81\xa5image\xd6\xff\x00\x00\x00\x00",
    },
    "request_json": {
        "metadata": json.dumps(envelope(metadata=METADATA)).encode(),
        "nan": json.dumps(envelope(metadata={"a": float("nan")})).encode(),
        "overflow": b'{"items":[{"prompt":"a","metadata":{"a":1e999,"b":123456789012345678901234}}]}',
        "surrogate": json.dumps(envelope(prompt="\ud800")).encode(),
        "surrogate_key": json.dumps(envelope(metadata={"\udfff": float("inf")})).encode(),
        "unknown": json.dumps({"items": [{"imag": 1}], "more": 2}).encode(),
        "deep": b'{"items":[{"prompt":"a","metadata":' + b'{"a":' * 3000 + b"1" + b"}" * 3000 + b"}]}",
    },
    "request_form": {
        "one": form(("image", PNG, UPLOAD), ("prompt", b"a cat", ""), ("rewards", b"geneval, ocr", "")),
        "metadata": form(
            ("image", PNG, UPLOAD),
            ("prompt", "ein Kätzchen".encode(), ""),
            ("metadata", json.dumps(METADATA).encode(), ""),
            ("deterministic", b"true", ""),
        ),
        "two": form(("image", PNG, UPLOAD), ("image", PNG, UPLOAD), ("prompt", b"a", ""), ("prompt", b"b", "")),
        "surrogate": form(("image", PNG, UPLOAD), ("prompt", b"a", ""), ("metadata", b'{"a": "\\ud800"}', "")),
        "text_image": form(("image", b"no file", ""), ("prompt", b"a", "")),
        "latin": form(("image", PNG, UPLOAD), ("prompt", b"\xff\xfe", "\r\nContent-Type: text/plain; charset=utf-7")),
    },
    "response": {
        "msgpack": encode_response(OUTCOMES, MSGPACK)[0],
        "json": encode_response(OUTCOMES, JSON)[0],
        "infinite": msgspec.msgpack.encode({"items": [{"results": {"x": {"score": float("inf")}}}]}),
        "rewards": b'{"rewards":[{"name":"ocr","version":"1","range":[0,null],"batch_limit":16}]}',
        "info": b'{"name":"ocr","version":"1","range":[0.0,1.0],"meaning":"m","batch_invariant":true}',
        "deep": b'{"items":[{"results":{"x":{"score":1,"details":{"a":' + b"[" * 3000 + b"]" * 3000 + b"}}}}]}",
        "deep_msgpack": b"\x81\xa5items\x91\x81\xa7results\x81\xa1x\x82\xa5score\x01\xa7details\x81\xa1a"
        + b"\x91" * 3000,
    },
    "image": {
        "rgb.png": PNG,
        "palette.png": picture("PNG", "P"),
        "gray.png": picture("PNG", "L"),
        "alpha.png": picture("PNG", "RGBA"),
        "sixteen.png": saved(Image.fromarray(PIXELS[..., 0].astype(np.uint16)), "PNG"),
        "rgb.jpg": picture("JPEG"),
        "progressive.jpg": picture("JPEG", progressive=True),
        "cmyk.jpg": picture("JPEG", "CMYK"),
        "lossy.webp": picture("WEBP"),
        "lossless.webp": picture("WEBP", lossless=True),
    },
}

if __name__ == "__main__":
    for target, files in SEEDS.items():
        folder = CORPUS / target
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)
