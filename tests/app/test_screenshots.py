"""Which texts are pictures."""

import base64

import pytest

from vizora_rt.app.screenshots import MAX_IMAGE, MAX_TEXT, decode, key

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 20
JPEG = b"\xff\xd8\xff\xe0" + b"\0" * 20


@pytest.mark.parametrize(("image", "media_type"), [(PNG, "image/png"), (JPEG, "image/jpeg")])
@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
def test_pictures(image: bytes, media_type: str, prefix: str) -> None:
    assert decode(prefix + base64.b64encode(image).decode()) == (media_type, image)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "expected a PNG or JPEG"),
        ("no base64!", "expected base64"),
        ("\u00e9\u00e9\u00e9\u00e9", "expected base64"),
        ("QUJ", "expected base64"),
        (base64.b64encode(b"GIF89a").decode(), "expected a PNG or JPEG"),
        ("data:image/png,xyz", "expected a PNG or JPEG"),
        (base64.b64encode(PNG + bytes(MAX_IMAGE)).decode(), f"expected an image of at most {MAX_IMAGE} bytes"),
    ],
)
def test_others(text: str, why: str) -> None:
    assert decode(text) == why


def test_the_largest_fits_into_the_longest_text() -> None:
    image = PNG + bytes(MAX_IMAGE - len(PNG))
    text = "data:image/jpeg;base64," + base64.b64encode(image).decode()
    assert len(text) <= MAX_TEXT
    assert decode(text) == ("image/png", image)


def test_key() -> None:
    assert key("r1") == "vz:{s:r1}"
