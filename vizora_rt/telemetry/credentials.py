"""Takes the values of secret-like names out of text, whatever syntax they stand in.

URL query, form, cookie, header, JSON, YAML, Python repr, command line, XML, and each of these escaped within another.
What a name is, is told by `secret_name`; where its value ends, by the syntax. In doubt the value is longer: a log that
lost a word is no leak. Everything here takes time linear in the text, whatever a peer put there: the patterns are
possessive and begin at the start of a run, and the scan never goes back.
"""

import html
import re
from functools import lru_cache
from typing import Final
from urllib.parse import unquote

REMOVED: Final = "<removed>"

STRONG: Final = (
    "token", "secret", "passw", "passphrase", "passcode", "pwd", "authoriz", "cookie", "credential", "signature",
    "apikey", "accesskey", "accountkey", "sharedkey", "privatekey", "signingkey", "encryptionkey", "masterkey",
    "keypairid", "accessid", "sessionid", "sessionkey", "sessid", "jwt", "bearer", "csrf", "xsrf", "hmac", "dsn",
    "connectionstring", "assertion", "samlre", "authcode", "accesscode", "verificationcode", "oauth", "imagedata",
    "authkey", "subscriptionkey", "functionskey", "functionkey", "consumerkey", "storagekey", "hostkey", "clientkey",
    "licensekey", "instrumentationkey", "rememberme", "cloudfront", "kennwort", "contrase", "motdepasse",
)  # fmt: skip
"""What makes a name secret-like wherever it stands in it, hyphens, underscores and capitals aside."""

LAST: Final = frozenset(
    {"auth", "sig", "sign", "sas", "sid", "session", "pass", "pin", "otp", "totp", "psk", "ticket", "nonce", "mac",
     "hdnts", "hdnea", "hdntl", "pincode", "cvv", "cvc"}
)  # fmt: skip
"""Words that make a name secret-like as its last one: `db_pass` and `x-sig`, and not `pass_count`."""

IN_QUERY: Final = frozenset(
    {"key", "code", "policy", "md5", "hash", "h", "state", "verify", "st", "s", "t", "tk", "sk", "ak"}
)  # fmt: skip
"""What signs or opens a URL, and elsewhere is an ordinary word."""

MAX_REMEMBERED: Final = 64
"""Characters of a name whose judgement is remembered: 1,024 of them take less than 200 KB."""

MAX_LAYERS: Final = 6
"""Escapes within escapes that are looked through: a URL in a URL in a JSON text in a JSON text."""

_PAIR = re.compile(
    r"""
    (?<![\w$.-])
    (?P<name>
        (?:(?:api|access|secret|private|signing|account|shared|session|pass)\ )?
        [\w$.-]++ (?:\\{1,8}(?:u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2})[\w$.-]*+){0,8}+ (?:\[[\w.-]{0,64}+\]){0,4}+
    )
    (?P<close>\\{0,8}["'`]?)
    (?P<between>
        \s{0,16}+ (?:=>|:=|\+?={1,3}|:(?!//)|->) \s{0,16}+
        | \s{0,4}+, \s{0,4}+ (?=[bBuUrR]{0,2}\\{0,8}["'`]) | \s{1,4} | >
    )
    """,
    re.VERBOSE,
)
_SEPARATOR = re.compile(r"[=:>,]|--")
"""Without one of these no name has a value."""
_OPEN = re.compile(r"""(?:[bBuUrRfF]{0,2}|\$)(\\{0,8})(["'`])""")
_QUOTED = {quote: re.compile(rf"(?:[^{quote}\\]|\\.|{quote}{quote})*+{quote}?", re.DOTALL) for quote in "\"'`"}
"""A quote that is doubled is one within the value (SQL, CSV), or begins and ends a long one (Python, TOML)."""
_BRACKET = re.compile(r"""["'`{}\[\]()]""")
_BLOCK = re.compile(r"[|>][-+\d]{0,3}[ \t]{0,16}\r?\n(?:[ \t]++[^\n]*+\n?)*+")
_LIST = re.compile(r"[^\n]*+(?:\n[ \t]*+-[^\n]*+)*+")
_LINE = re.compile(r"[^\r\n]*+")
_WORD = re.compile(r"""[^\s&;"'`]*+""")
_ARGUMENT = re.compile(r"\S*+")
_ELEMENT = re.compile(r"[^<]*+")
_SCALAR = re.compile(r"[^,}\]\r\n]*+")

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|([nrtbf/\"'\\]))")
_PLAIN = {"n": "\n", "r": "\r", "t": "\t", "b": " ", "f": " "}

_NAMED = re.compile(
    r"""
    \b(?:name|key|id|header|field)["']?\s{0,4}+[=:]\s{0,4}+["'](?P<name>[\w.$\[\]\\-]{1,64}+)["']
    (?:
        \s{0,16}+,?\s{0,16}+["']?value["']?\s{0,4}+[=:]\s{0,4}+(?=["'])
        | [^\r\n]{0,256}+(?:\r?\n[^\r\n]{1,256}+){0,4}+\r?\n\r?\n
    )
    """,
    re.VERBOSE,
)
"""A name that is a value itself, and its value behind it: HTML, XML, JSON (HAR), a part of multipart/form-data."""
_NAMED_AFTER = re.compile(
    r"""
    (\bvalue["']?\s{0,4}+[=:]\s{0,4}+)(?:"[^"]*+"|'[^']*+')
    (\s{0,16}+,?\s{0,16}+["']?(?:name|key|id|header|field)["']?\s{0,4}+[=:]\s{0,4}+["'])(?P<name>[\w.$\[\]\\-]{1,64}+)
    """,
    re.VERBOSE,
)
_PART = re.compile(r"(?:[^\n]++|\n(?!--))*+")

LOOKALIKES: Final = {
    **{0xFF01 + index: 0x21 + index for index in range(0x5E)},
    **dict.fromkeys(map(ord, "\u201c\u201d\u201e\u201f\u00ab\u00bb"), '"'),
    **dict.fromkeys(map(ord, "\u2018\u2019\u201a\u201b"), "'"),
    **dict.fromkeys(map(ord, "\u2190\u2192\u21d2\u2794\u2260"), "="),
    **dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u2060\ufeff"), None),
}
"""Characters that people and word processors put for those of ASCII, and such as nobody sees."""

ORDINARY: Final = ("token:refresh", "auth: the secret cannot be", "password> called without any password")
"""What the service itself says, or Redis, and looks like a name and its value."""


def secret_name(name: str, query: bool = False) -> bool:
    """Whether what is called so is not for others. `query`: it is a parameter of a URL."""
    # Only short names are remembered: a peer's text may be all name.
    return _remembered(name, query) if len(name) <= MAX_REMEMBERED else _judge(name, query)


def _judge(name: str, query: bool) -> bool:
    words = [word.lower() for word in _WORDS.findall(name)]
    if not words:
        return False
    joined = "".join(words)
    return (
        words[-1] in LAST or joined in LAST or any(part in joined for part in STRONG) or (query and joined in IN_QUERY)
    )


_remembered = lru_cache(1024)(_judge)


def without_values(text: str) -> str:
    """`text` with `<removed>` in place of each value of a secret-like name.

    Where characters that look like those of ASCII hide a value, they become ASCII.
    """
    text = _without_values(text)
    if not text.isascii():
        # Last: a curly quote within a value must not become its end.
        plain = text.translate(LOOKALIKES)
        if (cleaned := _without_values(plain)) != plain:
            return cleaned
    return text


def _without_values(text: str) -> str:
    if not _SEPARATOR.search(text):
        return text
    text = _NAMED_AFTER.sub(_without_value, text)
    found, done, at = [], 0, 0
    while match := _NAMED.search(text, at):
        at = match.end()
        if secret_name(match["name"]):
            opened = _OPEN.match(text, at)
            end = _end_of_quoted(text, opened) if opened and match[0][-1] != "\n" else _match(_PART, text, at)
            found += [text[done:at], REMOVED]
            done = at = end
    text = "".join(found) + text[done:]
    found, done, at = [], 0, 0
    while match := _PAIR.search(text, at):
        at = match.end("name")
        if not _is_pair(text, match):
            continue
        begin = match.end()
        end = _end(text, match)
        if end > begin:
            found += [text[done:begin], REMOVED]
            done = at = end
    return "".join(found) + text[done:] if found else text


def _without_value(match: re.Match[str]) -> str:
    return f"{match[1]}{REMOVED}{match[2]}{match['name']}" if secret_name(match["name"]) else match[0]


def unescaped(text: str) -> str:
    """`text` with one layer of escapes less: percent, else ampersand, else backslash.

    One kind at a time: what was a quote within a value must not become its end.
    """
    plain = unquote(text) if "%" in text else text
    if plain == text and "&" in text:
        plain = html.unescape(text)
    if plain == text and "\\" in text:
        plain = _ESCAPE.sub(_character, text)
    return plain


def _character(escape: re.Match[str]) -> str:
    code = escape[1] or escape[2]
    return chr(int(code, 16)) if code else _PLAIN.get(escape[3], escape[3])


def _is_pair(text: str, match: re.Match[str]) -> bool:
    """Whether it is a secret-like name with something that belongs to it."""
    start, name, between, close = match.start(), match["name"], match["between"], match["close"]
    if between == ">" and text[start - 1 : start] != "<" and not name.endswith("-"):
        return False  # neither an element nor `password->`
    if between.isspace() and (close or not name.startswith("--")):
        return False  # two words
    if between.lstrip().startswith(",") and not close:
        return False
    if text.startswith(ORDINARY, start) or text.startswith("expected `", match.end()):
        return False  # what a key of the configuration should be
    return secret_name(name, query="=" in between and text[start - 1 : start] in ("?", "&", ";"))


def _end(text: str, match: re.Match[str]) -> int:
    """Where the value ends that begins behind `match`."""
    at, between, name = match.end(), match["between"], match["name"].lower()
    line = ":" in between and not match["close"]
    if between == ">" and not name.endswith("-"):
        return _match(_ELEMENT, text, at)
    if line and text[at : at + 1] in ("|", ">") and (block := _BLOCK.match(text, at)):
        return block.end()
    if opened := _OPEN.match(text, at):
        return _end_of_quoted(text, opened)
    if line and "\n" in between:
        return _match(_LIST, text, at)
    if text[at : at + 1] in ("{", "[", "("):
        end = _end_of_brackets(text, at)
        if line:
            return _match(_LINE, text, end)
        # Connection strings write `;` within braces: `Pwd={a;b}`, and a brace may be part of a password.
        return end if text[end : end + 1] in (",", "}", "]", ")") else _match(_WORD, text, end)
    if line or "authoriz" in name or "cookie" in name:
        return _match(_LINE, text, at)
    if between.isspace():
        return _match(_ARGUMENT, text, at)
    end = _match(_SCALAR if ":" in between else _WORD, text, at)
    # A call: `token=Secret("...")`.
    return _end_of_brackets(text, end - 1) if text[at:end].endswith("(") else end


def _match(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return found.end() if found is not None else at


def _end_of_quoted(text: str, opened: re.Match[str]) -> int:
    """Behind the quote that closes; the end of `text` when none does."""
    escapes, quote = opened.groups()
    if not escapes:
        return _match(_QUOTED[quote], text, opened.end())
    # It is closed by a quote that is escaped as often: more escapes are of a quote within the value.
    at = opened.end()
    while (at := text.find(quote, at)) >= 0:
        before = text[max(opened.end(), at - len(escapes) - 1) : at]
        at += 1
        if len(before) - len(before.rstrip("\\")) == len(escapes):
            return at
    return len(text)


def _end_of_brackets(text: str, at: int) -> int:
    """Behind the bracket that closes the one at `at`; the end of `text` when none does."""
    depth = 0
    while found := _BRACKET.search(text, at):
        at = found.end()
        if found[0] in _QUOTED:
            at = _match(_QUOTED[found[0]], text, at)
            continue
        depth += 1 if found[0] in "{[(" else -1
        if depth == 0:
            return at
    return len(text)
