# Needs make and Python 3.11 or newer with its venv module; everything else is installed into .venv.
# `make PYTHON=/path/to/python3.12 demo` chooses the Python. `make demo ARGS=...` passes options on.

VENV := .venv
BIN := $(VENV)/bin
NODE := $(VENV)/node
PEERS := socket.io-client@4.8.4 socket.io-client-4.0@npm:socket.io-client@4.0.2 socket.io@4.8.4 ws@8.23.0 ioredis@6.0.0 prom-client@15.1.3
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
PYTHON ?=
ARGS ?=
# Tests wait more than they compute: more processes than cores. By file, for the services that a file shares.
JOBS ?= 3

.PHONY: help demo test lint soak monitoring drill bench bench-compare peers clean

help:
	@echo "make demo           start a gateway and simulated screens"
	@echo "make test           lint, types and tests: what CI runs; JOBS=1 for one after the other"
	@echo "make lint           ruff and mypy alone"
	@echo "make soak           the long tests"
	@echo "make monitoring     Prometheus and Alertmanager beside a gateway that runs"
	@echo "make drill          each alert's fault done for real: it fires, arrives, resolves; ARGS='RedisDown' for one"
	@echo "make bench          micro-benchmarks; saves the run in .benchmarks"
	@echo "make bench-compare  the same, beside the last saved run"
	@echo "make peers          install what tests and bench peers use of npm; needs node and npm"
	@echo "make clean          remove what make made"

demo: $(VENV)/.installed
	@exec $(BIN)/vizora-rt demo $(ARGS)

test: lint
	@$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile $(ARGS)

lint: $(VENV)/.installed-dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

soak: $(VENV)/.installed-dev
	@$(BIN)/python -m pytest -m soak $(ARGS)

monitoring: $(VENV)/.installed
	@exec $(BIN)/vizora-rt ops monitoring $(ARGS)

drill: $(VENV)/.installed
	@$(BIN)/vizora-rt ops drill $(ARGS)

# addopts is for tests: it switches benchmarks off.
bench: $(VENV)/.installed-dev
	@$(BIN)/python -m pytest -o addopts= bench --benchmark-only --benchmark-autosave $(ARGS)

bench-compare: $(VENV)/.installed-dev
	@test -d .benchmarks || { echo "Nothing to compare with: run make bench first." >&2; exit 1; }
	@$(BIN)/python -m pytest -o addopts= bench --benchmark-only --benchmark-compare --benchmark-sort=name $(ARGS)

# Clients of other people's making for tests, and servers for `python -m bench peers`. Both are skipped without.
peers: $(NODE)/.installed

clean:
	rm -rf $(VENV) build dist *.egg-info .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find vizora_rt tests bench -name __pycache__ -prune -exec rm -rf {} +

# The stamps are older than pyproject.toml when its dependencies may have changed; the second run costs nothing.
$(VENV)/.installed: pyproject.toml
	@$(VENV_READY)
	@echo "installing into $(VENV) ..."
	@$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml
	@$(VENV_READY)
	@echo "installing into $(VENV), with what tests need ..."
	@$(PIP) --editable '.[dev]'
	@touch $(VENV)/.installed $@

$(NODE)/.installed: Makefile | $(VENV)/.installed
	@npm install --prefix $(NODE) --no-save --no-audit --no-fund --loglevel=error $(PEERS)
	@touch $@

# A pyenv shim named python3.12 exists without that Python behind it: candidates are run, not looked up. An environment
# without pip is one whose making was interrupted.
FIT := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))

define VENV_READY
if ! $(BIN)/python -c 'import pip; $(FIT)' 2>/dev/null; then \
	for python in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11); do \
		if "$$python" -c '$(FIT)' 2>/dev/null; then found="$$python"; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
		echo "No Python 3.11 or newer with its venv module was found$(if $(PYTHON), as $(PYTHON)). On Debian or" \
			"Ubuntu: apt-get install python3 python3-venv. Elsewhere: make PYTHON=/path/to/python3.12 ..." >&2; \
		exit 1; \
	fi; \
	rm -rf $(VENV) && "$$found" -m venv $(VENV) || exit 1; \
fi
endef
