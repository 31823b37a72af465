"""`python -m vizora_rt`, and the command `vizora-rt`. `early` is imported first: it obeys signals while the rest is."""

from vizora_rt import early
from vizora_rt.cli import main as command


def main() -> None:
    early.imported()
    command()


if __name__ == "__main__":
    main()
