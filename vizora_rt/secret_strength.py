"""Tells a secret that was made from one that was left as it stood in an example.

It knows placeholders, not entropy: what a generator makes must never be refused by chance.
"""

import re
from itertools import pairwise
from typing import Final

MIN_BYTES: Final = 16
"""Bytes of a secret, at least. 128 bits are what cannot be tried out; fewer bytes cannot hold them."""

MIN_DISTINCT: Final = 4
"""Different characters, at least. Of texts of 16 random decimal digits one in two million has three or less."""

MIN_REST: Final = 8
"""Letters and digits, at least, that stay when the words below are taken out. A passphrase keeps more, and what a
generator makes keeps nearly all."""

# In this order: what examples tell their reader to do; what they call the value, and what it is for; how they say that
# it is none, or what a good one would be; grammar; the passwords that all lists of passwords begin with.
_TEXT: Final = """
    change changed changeit changeme changethis replace replaced replaceme set setme insert enter put fill todo fixme
    tbd generate generated please must should need needs use using keep make add edit update provide choose pick

    secret secrets key keys token tokens password passwd passphrase pass pwd phrase value string text here hash salt
    hmac sha jwt jwts jws api auth bearer signing sign signed signature access refresh session cookie private public
    internal external device devices user users dashboard metric metrics backend gateway server service realtime
    vizora rt app application client admin root node env environment config variable

    default example examples sample placeholder dummy demo test tests testing tester dev devel development local
    localhost prod production stage staging foo bar baz foobar qux temp temporary tmp none null undefined empty nothing
    unset something anything whatever blank missing fake mock insecure unsafe notsecret
    super top very really strong long longer secure safe random unique real own hard good some any least minimum min max
    character characters char chars letter letters bit bits byte bytes digit digits hex base openssl rand urandom

    a an the my our your yours me us you it this that these is are be not no do dont with without of in on for from to
    by at and or as than then before after deploy deployment deploying more new old previous current first last one two

    letmein welcome login monkey dragon qwerty qwertyuiop asdf asdfgh asdfghjkl zxcv zxcvbnm iloveyou sesame opensesame
    keyboard cat shh shhh shhhh shhhhh abc abcd abcde abcdef abcdefgh xxx xxxx lorem ipsum hello world
    0123456789 1234567890 123456789 12345678 1234567 123456 12345 1234 123 987654321 87654321 654321 54321 4321 321
"""

WORDS: Final = frozenset(_TEXT.split())

_LONG = re.compile("|".join(sorted((word for word in WORDS if len(word) >= 6), key=len, reverse=True)))
"""Words that stand in nothing by chance: one in a hundred million texts of 32 random letters has one of six."""

_RUN = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+|[^\W_]")
"""Letters that belong together, also in camel case, or digits."""

_SAME = re.compile(r"(.)\1{3,}")

_TEMPLATE = re.compile(r"<.*>|\[.*\]|\{.*\}|\$\{?\w+\}?|\$\(.*\)|`.*`|%\w+%|__\w+__|\$\{.*\}", re.DOTALL)
"""What a template, a shell or a manual would have filled in, from end to end. A .env file and systemd's
EnvironmentFile= run no command: there `$(openssl rand -hex 32)` is these letters."""


def fault(secret: str) -> str:
    """Why `secret` protects nothing, for people and without the value; "" when it may be used."""
    size = len(secret.encode("utf-8", "surrogateescape"))
    text = secret.strip().strip("\"'").strip()
    if _TEMPLATE.fullmatch(text):
        return "is a template that nothing has filled in"
    if size < MIN_BYTES:
        return f"has {size} {'byte' if size == 1 else 'bytes'}, and at least {MIN_BYTES} are needed"
    if len(set(text)) < MIN_DISTINCT or _repeats(text) or _counts(text):
        return "is one pattern of characters, repeated"
    if _is_words(text):
        return "is a placeholder"
    return ""


def _repeats(text: str) -> bool:
    """Whether it is one shorter text again and again: a text has the period n when it fits on itself moved by n."""
    period = (text + text).find(text, 1)
    return period < len(text) and period < MIN_BYTES


def _counts(text: str) -> bool:
    """Whether nearly all of its characters follow the one before in the alphabet, or equal it."""
    steps = [abs(ord(b) - ord(a)) <= 1 for a, b in pairwise(text)]
    return sum(steps) * 5 >= len(steps) * 4


def _is_words(text: str) -> bool:
    """Whether next to nothing is left of it without the words."""
    runs = _RUN.findall(text)
    left = [_without_words(run.lower()) for run in runs]
    rest = sum(map(len, left))
    # A random text has words of one or two letters by chance, and none of four.
    found = any(len(run) - len(kept) >= 4 for run, kept in zip(runs, left, strict=True))
    return bool(runs) and (rest < 3 or (found and rest < MIN_REST))


def _without_words(run: str) -> str:
    """What is left of `run`: nothing when words make up all of it, else what the long ones leave."""
    run = _SAME.sub("", run)
    ends = {0}
    for end in range(1, len(run) + 1):
        if any(run[begin:end] in WORDS for begin in ends):
            ends.add(end)
    return "" if len(run) in ends else _LONG.sub("", run)
