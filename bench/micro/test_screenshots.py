"""What the largest picture pays to be read: it holds up everybody else on its worker."""

import base64

from pytest_benchmark.fixture import BenchmarkFixture

from vizora_rt.app.screenshots import MAX_IMAGE, decode

PNG = b"\x89PNG\r\n\x1a\n"


def test_the_largest(benchmark: BenchmarkFixture) -> None:
    text = base64.b64encode(PNG + bytes(MAX_IMAGE - len(PNG))).decode()
    assert benchmark(decode, text)[0] == "image/png"
