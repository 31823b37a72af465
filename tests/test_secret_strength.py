"""Placeholders are told from secrets, and no generator's secret is ever taken for one."""

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vizora_rt.secret_strength import MIN_BYTES, fault

PLACEHOLDERS = [
    "changemechangeme", "CHANGE_ME_IN_PRODUCTION", "changeMeInProduction", "replace_with_64_random_characters",
    "please-replace-this-with-a-random-string", "your-secret-here-please", "YOUR_DEVICE_JWT_SECRET_MIN_32_CHARS",
    "your-256-bit-secret", "a-string-secret-at-least-256-bits-long", "my-super-secret-key-2024", "supersecretjwtkey",
    "SuperSecretKeyXYZ1", "DEVICE_JWT_SECRET", "vizora-device-jwt-secret", "dev-secret-change-in-production",
    "local-development-secret-do-not-use", "this-is-not-a-real-secret", "test-secret-for-e2e-tests",
    "keyboard cat keyboard cat", "password12345678", "Secret123Secret123!", "qwertyuiop123456",
    "generate-with-openssl-rand-hex-32",
    "secret-xxxxxxxxxxxxxxxx", "jwt key for dev 1", '"changeme-changeme"', "  change me, please!  ",
]  # fmt: skip
PATTERNS = [
    "x" * 16, "." * 40, "0" * 64, "xxxxxxxx-xxxx-xxxx", "aaaaaaaabbbbbbbb", "ab" * 20, "1234567890123456", "d3a9" * 8,
    "0123456789abcdef", "0123456789abcdef0123456789abcdef", "abcdefghijklmnopqrstuvwxyz", "fedcba9876543210",
]  # fmt: skip
TEMPLATES = [
    "<your secret>", "<...>", "${JWT_SECRET}", "$JWT_SECRET", "${JWT_SECRET:?it is not set}", "{{ jwt_secret }}",
    "$(openssl rand -hex 32)", "`openssl rand -hex 32`", "%JWT_SECRET%", "__JWT_SECRET__", "[insert secret here]",
    "'<your secret>'",
]  # fmt: skip


@pytest.mark.parametrize("text", PLACEHOLDERS)
def test_placeholders(text: str) -> None:
    assert fault(text) in ("is a placeholder", "is one pattern of characters, repeated")


@pytest.mark.parametrize("text", PATTERNS)
def test_patterns(text: str) -> None:
    assert fault(text) == "is one pattern of characters, repeated"


@pytest.mark.parametrize("text", TEMPLATES)
def test_templates(text: str) -> None:
    assert fault(text) == "is a template that nothing has filled in"


@pytest.mark.parametrize(
    ("text", "size"), [("", "0 bytes"), ("s", "1 byte"), ("...", "3 bytes"), ("kS9!pQ2x", "8 bytes")]
)
def test_short_ones(text: str, size: str) -> None:
    assert fault(text) == f"has {size}, and at least {MIN_BYTES} are needed"


@given(st.text())
def test_any_text_is_judged_and_none_is_shown(text: str) -> None:
    said = fault(text)
    assert text in ("", *said) or len(text) < 4 or text not in said


@pytest.mark.parametrize(
    "text", ["correct-horse-battery-staple", "the quick brown fox jumps over", "Tr0ub4dor&3-Tr0mb0ne"]
)
def test_a_phrase_of_ones_own_is_taken(text: str) -> None:
    assert fault(text) == ""


class TestGenerators:
    """What `openssl rand` and its like print. Hypothesis prefers what no generator gives, so these are drawn alike."""

    @pytest.mark.parametrize("size", [8, 16, 24, 32, 64])
    def test_each_form_of_random_bytes(self, size: int) -> None:
        # A fixed seed: one in some millions may look like a pattern, and no test may fail for it.
        state = b"seed"
        for _ in range(2_000):
            state = hashlib.sha512(state).digest()
            some = state[: max(size, 12)]
            forms = [base64.b64encode(some), base64.urlsafe_b64encode(some), state[:size].hex().encode()]
            for form in forms:
                assert fault(form.decode()) == "", form
