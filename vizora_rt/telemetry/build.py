"""Which commit the running code was built from, as far as the deployment or the installer says so."""

import json
import re
from importlib import metadata
from typing import Final

from vizora_rt.telemetry.metrics import UNKNOWN

PACKAGE: Final = "vizora-rt"

COMMIT: Final = re.compile(
    r"""
    (?: (?:^|[+@]) (?:sha-|sha:|git-|g)? (?=[0-9]*[a-f]) ([0-9a-f]{7,64})
      | (?:^|[+@]|sha-|sha:|git-) ([0-9a-f]{40})
      | (?:[-.]g|sha-|sha:|git-) ([0-9a-f]{7,40}) )
    (?:[-.]dirty|\.d[0-9]{8})? $
    """,
    re.VERBOSE,
)
"""A git commit at the end of a release: alone, as build metadata (`1.4.0+5c1f0a2`), from `git describe`
(`v1.4.0-3-g5c1f0a2-dirty`), from setuptools-scm (`1.4.1.dev3+g5c1f0a2.d20261130`), or as a tag of an image
(`sha-5c1f0a2`). Fewer than 40 digits without a letter are a date or a number: `20261130`."""


def commit(release: str) -> str:
    """The commit in hexadecimal digits. It is what `release` names, else what the package was installed from (PEP 610),
    else `unknown`. A version is no commit."""
    found = COMMIT.search(release.strip().lower())
    if found is not None:
        return str(found[found.lastindex or 0])
    try:
        installed = json.loads(metadata.distribution(PACKAGE).read_text("direct_url.json") or "{}")
        return str(installed["vcs_info"]["commit_id"])
    except (metadata.PackageNotFoundError, ValueError, KeyError, TypeError):
        return UNKNOWN
