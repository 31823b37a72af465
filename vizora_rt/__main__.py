"""`python -m vizora_rt`: the same as the command `vizora-rt`."""

from vizora_rt.cli import main

main()
