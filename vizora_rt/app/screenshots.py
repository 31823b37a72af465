"""Is it a picture? What a screen sends as a screenshot: base64 of a PNG or JPEG, at most 1 MiB of it.

Base64 as libraries write it: of both alphabets (RFC 4648 sections 4 and 5), with line breaks (RFC 2045) or without,
with padding or without, percent-encoded, and as a data: URL (RFC 2397) with any parameters.
"""

import base64
import binascii
import re
from typing import Final

MAX_IMAGE: Final = 1_048_576
MAX_TEXT: Final = 1_500_000
"""Characters of that in base64: 1,398,104, with a line break after each 64 another 3 %, and what a data: URL adds."""

KEPT_SECONDS: Final = 600

SIGNATURES: Final = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}
"""How a PNG (RFC 2083 section 3.1) and a JPEG (SOI, then the first marker) begin."""


_URL: Final = re.compile(r"\s*data:[^,]{0,256},", re.IGNORECASE)
_SPACE: Final = str.maketrans("", "", " \t\r\n\f\v")
_URL_SAFE: Final = str.maketrans("-_", "+/")
_ENCODED: Final = (("%2b", "+"), ("%2f", "/"), ("%3d", "="), ("%0d", ""), ("%0a", ""), ("%20", ""))
"""What encoders of URLs write otherwise. No more is decoded: 1.5 MB of it would hold the loop for 300 ms."""


def decode(text: str) -> tuple[str, bytes] | str:
    """Media type and bytes of an image, or why it is none."""
    url = _URL.match(text)
    if url is not None:
        if not url[0].translate(_SPACE).lower().endswith(";base64,"):
            return "expected base64"
        text = text[url.end() :]
    if "%" in text:
        for code, character in _ENCODED:
            text = text.replace(code, character).replace(code.upper(), character)
    text = text.translate(_SPACE).translate(_URL_SAFE).rstrip("=")
    try:
        image = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), validate=True)
    except (UnicodeEncodeError, binascii.Error):
        return "expected base64"
    if len(image) > MAX_IMAGE:
        return f"expected an image of at most {MAX_IMAGE} bytes"
    for signature, media_type in SIGNATURES.items():
        if image.startswith(signature):
            return media_type, image
    return "expected a PNG or JPEG"


def key(request_id: str) -> str:
    return f"vz:{{s:{request_id}}}"
