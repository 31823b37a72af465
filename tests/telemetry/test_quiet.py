"""Lines that come again and again: three a minute, and how many were left out."""

from vizora_rt.telemetry.quiet import BURST, SECONDS, Quiet


def test_three_a_minute_of_a_kind() -> None:
    now = 0.0
    quiet = Quiet(lambda: now)
    assert [quiet.may_say("ended") for _ in range(BURST + 4)] == [True] * BURST + [False] * 4
    assert quiet.may_say("other")
    assert quiet.left_out("other") is None
    now = SECONDS
    assert quiet.may_say("ended")
    assert quiet.left_out("ended") == 4
    assert quiet.left_out("ended") is None
