"""`python -m bench`: starts the command line, or names the package that it lacks."""

import sys

try:
    from bench.cli import command
except ModuleNotFoundError as error:
    package = (error.name or "").partition(".")[0]
    if package in ("bench", "vizora_rt"):
        raise
    sys.exit(f"python -m bench: the package {package} is missing. Run: make bench-deps")

if __name__ == "__main__":
    command(prog_name="python -m bench")
