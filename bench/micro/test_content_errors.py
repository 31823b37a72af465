"""What a content error pays before it is written: redacted, bounded, encoded."""

from pytest_benchmark.fixture import BenchmarkFixture

from vizora_rt import config
from vizora_rt.app.content_errors import ContentErrors
from vizora_rt.app.state import Device
from vizora_rt.wire.payloads import ContentError, validate

NOW = 1_764_000_000_000
DATA = {
    "contentId": "spot",
    "errorType": "network_error",
    "errorMessage": "GET https://cdn.example/spot.mp4?token=abc failed",
    "context": {"url": "https://cdn.example/spot.mp4?token=abc", "attempt": 3},
}


def test_error(benchmark: BenchmarkFixture) -> None:
    errors, device = ContentErrors(config.PlaySettings()), Device("lobby", "acme")
    payload = validate(ContentError, DATA)
    assert isinstance(payload, ContentError)
    assert benchmark(errors.error, device, payload, NOW).write is not None
