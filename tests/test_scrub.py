"""What is taken out of whatever is written down, and what stays."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vizora_rt import scrub
from vizora_rt.config import Auth, Config, Metrics, Redis
from vizora_rt.scrub import REMOVED

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJkIn0.c2lnbmF0dXJl-_"


@given(st.text())
def test_any_text_becomes_one_printable_line(text: str) -> None:
    line = json.dumps(scrub.clean({"key": text}))
    assert json.loads(line).keys() == {"key"}
    json.loads(line)["key"].encode()


@pytest.mark.parametrize(
    "text",
    [
        JWT,
        f"GET /ws?a=1&token={JWT} HTTP/1.1",
        "GET /ws?token=opaque-SECRET&b=2",
        "access_token=opaque-SECRET; next",
        "Authorization: Bearer opaque-SECRET",
        "'authorization': 'opaque-SECRET'",
        "Cookie: vizora_auth_token=opaque-SECRET; other=opaque-SECRET",
        "x-internal-api-key: opaque-SECRET",
        "DEVICE_JWT_SECRET=opaque-SECRET",
        f"vizora.v1, bearer.{JWT}",
        f"prefix-{JWT}",
        "redis://user:opaque-SECRET@10.0.0.1:6379/0",
        "redis://:opaque-SECRET@10.0.0.1:6379/0",
        "data:image/png;base64,opaqueSECRET==",
    ],
)
def test_credentials_are_scrubbed_from_text(text: str) -> None:
    cleaned = scrub.scrub(text)
    assert REMOVED in cleaned
    assert "SECRET" not in cleaned.removeprefix("DEVICE_JWT_SECRET")
    assert "eyJ" not in cleaned


@pytest.mark.parametrize("text", ["10.0.0.1:6379", "redis://10.0.0.1:6379/0", "v1.2.3", "a token of love", "x=1&y=2"])
def test_ordinary_text_stays(text: str) -> None:
    assert scrub.scrub(text) == text


def test_fields_named_like_secrets_are_removed_at_any_depth() -> None:
    value = {"token": "a", "headers": {"Authorization": "b", "Host": "c"}, "imageData": "d", "jwt_secrets": ["e"]}
    assert scrub.clean(value) == {
        "token": REMOVED,
        "headers": {"Authorization": REMOVED, "Host": "c"},
        "imageData": REMOVED,
        "jwt_secrets": [REMOVED],
    }


def test_a_value_is_bounded_and_the_cut_leaves_no_half_token() -> None:
    assert len(scrub.clean("word " * 100_000)) < scrub.MAX_TEXT + 50
    assert scrub.clean("x " * 1020 + "y" * 4 + JWT) == "x " * 1019 + "x... (2095 characters)"
    nested: list[Any] = []
    for _ in range(50):
        nested = [nested]
    assert "..." in json.dumps(scrub.clean(nested))


def test_numbers_that_json_lacks_become_text() -> None:
    assert scrub.clean([float("nan"), float("inf"), 1.5]) == ["nan", "inf", 1.5]


@pytest.mark.parametrize(
    "text", ["eyJ-" * 100_000, "token" * 100_000, "a" * 400_000, "eyJ" + "a." * 200_000, "://" * 100_000]
)
def test_scrubbing_is_linear(text: str) -> None:
    """A quadratic pattern would not come back from these for minutes."""
    scrub.scrub(text)


def test_a_picture_without_its_prefix_is_removed_and_long_ids_and_paths_stay() -> None:
    assert scrub.scrub(f"bad picture: {'iVBORw0KGgo' * 40}= at 3") == f"bad picture: {REMOVED} at 3"
    stays = f"{'d' * 128} and /{'folder/' * 20}file.py"
    assert scrub.scrub(stays) == stays


def test_the_secrets_of_the_configuration_are_known_by_their_value() -> None:
    auth = Auth(device_jwt_secret="correct horse", internal_api_secret="battery/staple", jwt_secret="short")
    redis = Redis(url="redis://user:p%40ssword9@10.0.0.1:6379/0")
    try:
        scrub.learn(Config(auth=auth, redis=redis, metrics=Metrics(token="scrape-me-not")))
        text = scrub.scrub("keys correct horse, battery/staple, scrape-me-not, p@ssword9, p%40ssword9: short")
        assert text == f"keys {', '.join([REMOVED] * 5)}: short"
    finally:
        scrub.learn(Config())
    assert scrub.scrub("correct horse") == "correct horse"


def test_a_tree_is_scrubbed_and_keeps_its_shape() -> None:
    long = "word " * 2000
    value = {"a": [{"cookie": "b", "n": 1, "text": f"bearer {JWT}"}], "stack": long, "none": None}
    assert scrub.tree(value) == {
        "a": [{"cookie": REMOVED, "n": 1, "text": f"bearer {REMOVED}"}],
        "stack": long,
        "none": None,
    }
