"""Is it a picture? What a screen sends as a screenshot: base64 of a PNG or JPEG, at most 1 MiB of it."""

import base64
import binascii
from typing import Final

MAX_IMAGE: Final = 1_048_576
MAX_TEXT: Final = (MAX_IMAGE + 2) // 3 * 4 + 64
"""Characters of that in base64, and of the `data:image/png;base64,` that browsers put before it."""

KEPT_SECONDS: Final = 600

SIGNATURES: Final = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}
"""How a PNG (RFC 2083 section 3.1) and a JPEG (SOI, then the first marker) begin."""


def decode(text: str) -> tuple[str, bytes] | str:
    """Media type and bytes of an image, or why it is none."""
    if text.startswith("data:image/"):
        text = text.partition(";base64,")[2]
    try:
        image = base64.b64decode(text.encode("ascii"), validate=True)
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
