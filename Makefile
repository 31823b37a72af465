# Needs make and Python 3.11 or newer with its venv module; everything else is installed into .venv.
# `make PYTHON=/path/to/python3.12 demo` chooses the Python. `make demo ARGS=...` passes options on.
#
# What is installed is locked: each file in requirements/ names every package of its set with version and hashes, so that
# a package released tomorrow changes nothing here. `make lock` renews the locks, `make test-newest` tries what they would become.

VENV := .venv
BIN := $(VENV)/bin
NODE := $(VENV)/node
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
LOCKED := $(PIP) --require-hashes --requirement
# setuptools, which builds this package, is in each lock; pip would fetch the newest otherwise.
EDITABLE := $(PIP) --no-deps --no-build-isolation --editable .
PYTHON ?=
ARGS ?=
# Tests wait more than they compute: more processes than cores. By file, for the services that a file shares.
JOBS ?= 3

# The pure core, where a Python's own tables and docstrings could show; the command line; one service with its clients.
SHORT := tests/wire tests/app tests/test_house.py tests/test_cli.py tests/test_config.py tests/telemetry/test_sentry.py \
	tests/bench/test_report.py tests/net/gateway/test_gateway.py tests/system/test_metrics.py

.PHONY: help demo test test-short test-newest lint soak monitoring drill bench bench-deps bench-compare peers lock clean

help:
	@echo "make demo           start a gateway and simulated screens"
	@echo "make test           lint, types and tests: what CI runs; JOBS=1 for one after the other"
	@echo "make test-short     the tests of wire/ and app/, the command line and one whole service: two minutes"
	@echo "make test-newest    the tests with the newest packages that pyproject.toml allows, in .venv-newest"
	@echo "make lint           ruff and mypy alone"
	@echo "make soak           the long tests"
	@echo "make monitoring     Prometheus and Alertmanager beside a gateway that runs"
	@echo "make drill          each alert's fault done for real: it fires, arrives, resolves; ARGS='RedisDown' for one"
	@echo "make bench-deps     install what python -m bench needs"
	@echo "make bench          micro-benchmarks; saves the run in .benchmarks"
	@echo "make bench-compare  the same, beside the last saved run"
	@echo "make peers          install what tests and bench peers use of npm; needs node and npm"
	@echo "make lock           renew the locks in requirements/ and tests/conformance/"
	@echo "make clean          remove what make made"

demo: $(VENV)/.installed
	@exec $(BIN)/vizora-rt demo $(ARGS)

test: lint
	@$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile $(ARGS)

test-short: $(VENV)/.installed-dev
	@$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile $(SHORT) $(ARGS)

# A lock hides what a new release breaks; this shows it before `make lock` brings it in.
test-newest:
	@$(MAKE) --no-print-directory VENV=.venv-newest .venv-newest/.python
	@.venv-newest/bin/python -m pip --disable-pip-version-check install --quiet --upgrade --editable '.[bench,dev]'
	@test ! -d $(NODE) || ln -sfn ../$(NODE) .venv-newest/node
	@.venv-newest/bin/python -m pytest --numprocesses $(JOBS) --dist loadfile $(ARGS)

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

bench-deps: $(VENV)/.installed-bench

# Clients of other people's making for tests, and servers for `python -m bench peers`. Both are skipped without.
peers: $(NODE)/.installed

# The development set is solved first: the smaller sets take their versions from it.
lock: $(VENV)/.installed-lock
	@$(COMPILE) --extra bench --extra crypto --extra dev --output-file requirements/dev.txt
	@$(COMPILE) --constraints requirements/dev.txt --extra bench --output-file requirements/bench.txt
	@$(COMPILE) --constraints requirements/dev.txt --output-file requirements/run.txt
	@$(BIN)/uv pip compile $(COMPILE_OPTIONS) --output-file requirements/lock.txt requirements/lock.in
	@cd tests/conformance && npm install --package-lock-only --omit-lockfile-registry-resolved --no-audit --no-fund --loglevel=error

COMPILE_OPTIONS := --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --upgrade
COMPILE = $(BIN)/uv pip compile $(COMPILE_OPTIONS) pyproject.toml requirements/build.in

clean:
	rm -rf $(VENV) .venv-newest build dist *.egg-info .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find vizora_rt tests bench -name __pycache__ -prune -exec rm -rf {} +

# A stamp is older than its lock when something may have changed; the second run costs nothing.
$(VENV)/.installed: pyproject.toml requirements/run.txt
	@$(VENV_READY)
	@echo "installing into $(VENV) ..."
	@$(LOCKED) requirements/run.txt
	@$(EDITABLE)
	@touch $@

$(VENV)/.installed-bench: pyproject.toml requirements/bench.txt
	@$(VENV_READY)
	@echo "installing into $(VENV), with what the bench suite needs ..."
	@$(LOCKED) requirements/bench.txt
	@$(EDITABLE)
	@touch $(VENV)/.installed $@

$(VENV)/.installed-dev: pyproject.toml requirements/dev.txt
	@$(VENV_READY)
	@echo "installing into $(VENV), with what tests need ..."
	@$(LOCKED) requirements/dev.txt
	@$(EDITABLE)
	@touch $(VENV)/.installed $(VENV)/.installed-bench $@

$(VENV)/.installed-lock: requirements/lock.txt
	@$(VENV_READY)
	@$(LOCKED) requirements/lock.txt
	@touch $@

$(VENV)/.python:
	@$(VENV_READY)

$(NODE)/.installed: tests/conformance/package.json tests/conformance/package-lock.json | $(VENV)/.installed
	@mkdir -p $(NODE)
	@cp tests/conformance/package.json tests/conformance/package-lock.json $(NODE)
	@npm ci --prefix $(NODE) --no-audit --no-fund --loglevel=error
	@touch $@

# A pyenv shim named python3.12 exists without that Python behind it: candidates are run, not looked up. An environment
# without pip is one whose making was interrupted.
# `PYTHON=` that names another Python than the environment has removes it here, before make looks at the stamps.
BASE := python_of() { "$$1" -c 'import os, sys; print(os.path.realpath(sys.executable), sys.version)'; }; python_of
ifneq ($(PYTHON),)
ifneq ($(shell $(BASE) $(PYTHON) 2>/dev/null),$(shell cat $(VENV)/.python 2>/dev/null))
$(shell rm -rf $(VENV))
endif
endif
FIT := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))

define VENV_READY
if ! $(BIN)/python -c 'import pip; $(FIT)' 2>/dev/null || test ! -e $(VENV)/.python; then \
	for python in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11); do \
		if "$$python" -c '$(FIT)' 2>/dev/null; then found="$$python"; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
		echo "No Python 3.11 or newer with its venv module was found$(if $(PYTHON), as $(PYTHON)). On Debian or" \
			"Ubuntu: apt-get install python3 python3-venv. Elsewhere: make PYTHON=/path/to/python3.12 ..." >&2; \
		exit 1; \
	fi; \
	rm -rf $(VENV) && "$$found" -m venv $(VENV) && $(BASE) $(BIN)/python >$(VENV)/.python || exit 1; \
fi
endef
