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


PIXELS = PNG + bytes(range(256)) * 3 + b"\xff\xfb\xef\xbe"
PLAIN = base64.b64encode(PIXELS).decode()


@pytest.mark.parametrize(
    "text",
    [
        base64.encodebytes(PIXELS).decode(),
        base64.encodebytes(PIXELS).decode().replace("\n", "\r\n"),
        base64.urlsafe_b64encode(PIXELS).decode(),
        base64.urlsafe_b64encode(PIXELS).decode().rstrip("="),
        PLAIN.rstrip("="),
        f" {PLAIN}\n",
        f"data:image/png;charset=utf-8;base64,{PLAIN}",
        f"data:image/png;name=a%20b.png;base64,{PLAIN}",
        f"DATA:IMAGE/PNG;BASE64,{PLAIN}",
        f"data:;base64,{PLAIN}",
        f"data:application/octet-stream;base64,\n{base64.encodebytes(PIXELS).decode()}",
        f" data: image/png ; base64 ,\r\n{PLAIN}",
        PLAIN.replace("+", "%2B").replace("/", "%2f").replace("=", "%3D"),
        base64.encodebytes(PIXELS).decode().replace("\n", "%0D%0A"),
        f"data:image/png;base64,{PLAIN.replace('+', '%2B').replace('/', '%2F').replace('=', '%3D')}",
    ],
)
def test_base64_as_libraries_write_it(text: str) -> None:
    assert "+" in PLAIN and "/" in PLAIN
    assert decode(text) == ("image/png", PIXELS)


@pytest.mark.parametrize("size", range(3))
def test_any_padding(size: int) -> None:
    image = PNG + bytes(size)
    assert decode(base64.b64encode(image).decode().rstrip("=")) == ("image/png", image)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "expected a PNG or JPEG"),
        ("no base64!", "expected base64"),
        ("\u00e9\u00e9\u00e9\u00e9", "expected base64"),
        ("QUJDR", "expected base64"),
        ("QU=JD", "expected base64"),
        ("data:image/png;base64", "expected base64"),
        (base64.b64encode(b"GIF89a").decode(), "expected a PNG or JPEG"),
        ("data:image/png,xyz", "expected base64"),
        (base64.b64encode(PNG + bytes(MAX_IMAGE)).decode(), f"expected an image of at most {MAX_IMAGE} bytes"),
    ],
)
def test_others(text: str, why: str) -> None:
    assert decode(text) == why


def test_the_largest_fits_into_the_longest_text() -> None:
    image = PNG + bytes(MAX_IMAGE - len(PNG))
    lines = base64.b64encode(image).decode()
    text = "data:image/jpeg;base64," + "\r\n".join(lines[at : at + 64] for at in range(0, len(lines), 64))
    assert len(text) <= MAX_TEXT
    assert decode(text) == ("image/png", image)


def test_key() -> None:
    assert key("r1") == "vz:{s:r1}"
