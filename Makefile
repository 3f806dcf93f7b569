# Everything happens in .venv of this checkout; nothing global is touched, except by (un)install-service.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

BIN := .venv/bin
READY := .venv/.ready
# Test processes: they wait for each other and for clocks, so there are twice as many as processors.
WORKERS ?= $(shell echo $$(( $$(nproc) * 2 )))
# More arguments for pytest or the drill: make test ARGS="-k resume", make demo ARGS=--keep
ARGS ?=
# TensorFlow has wheels for these; PYTHON=... chooses another.
CANDIDATES := python3 python3.13 python3.12 python3.11
PYTHON ?= $(shell for python in $(CANDIDATES); do \
	"$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& command -v "$$python" && break; done)

.PHONY: help setup demo test check lint types storm soak faults chaos patience matrix keras-tests versions bench install-service uninstall-service clean

help: ## show this
	@echo "make TARGET, where TARGET is one of:"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' Makefile | expand -t 22

setup: $(READY) ## make .venv and install everything into it (the other targets do it by themselves)

$(READY): pyproject.toml
	@[ -n "$(PYTHON)" ] || { echo "setup: no Python 3.11, 3.12 or 3.13 here; install Debian's packages python3 and python3-venv" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { echo "setup: $(PYTHON) cannot make virtual environments; install Debian's package python3-venv" >&2; exit 1; }
	@echo "setup: installing into .venv with $$("$(PYTHON)" --version) (TensorFlow is some 600 MB; minutes the first time)"
	@"$(PYTHON)" -m venv .venv
	@$(BIN)/python -m pip install --disable-pip-version-check --no-input --progress-bar off --editable ".[examples,mirror,dev]" \
		| sed -un 's/^ *\(Downloading\|Using cached\) \(.*\)\.\(whl\|tar\.gz\)\( .*\)\?$$/  \2\4/p'
	@touch $(READY)
	@echo "setup: done"

demo: $(READY) ## train real digits, kill the training twice, and compare with an undisturbed run
	@$(BIN)/runner drill jobs/digits --kills 2 $(ARGS)

test: $(READY) ## the whole test suite (root: with the tests under a real systemd)
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

check: lint types test ## what must hold before a change goes in

lint: $(READY) ## style and layout of the code
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

types: $(READY) ## mypy --strict
	@$(BIN)/mypy

storm: $(READY) ## the long form of the kill storm: 20 kills of the worker, 5 of worker and supervisor
	@STORM_KILLS=20 STORM_BOTH=5 $(BIN)/python -m pytest -s tests/system/test_storm.py

soak: $(READY) ## 150 epochs of the Pima job under 40 kills, unseeded and seeded
	@SOAK_KILLS=40 $(BIN)/python -m pytest -s tests/system/test_soak.py

faults: $(READY) ## as root: kills, errors, short writes, power cuts, full disks and damage: no commit is torn or lost
	@$(BIN)/python -m tests.faults $(ARGS)

chaos: $(READY) ## kills of the supervisor at each system call, and 500 random faults over 50 jobs and more: each ends as it should
	@$(BIN)/python -m tests.chaos $(ARGS)

patience: $(READY) ## an hour of jobs with uneven steps, stopped for minutes, under a clock that steps: no hang is seen but a real one
	@PATIENCE_MINUTES=60 $(BIN)/python -m pytest -s tests/system/test_patience.py

matrix: $(READY) ## some 150 small trainings, each killed three times: what is called exact is so, to the bit (ARGS=--hot: with hot spares)
	@$(BIN)/python -m tests.matrix $(ARGS)

keras-tests: $(READY) ## Keras's own tests, with the instrumentation and without: the outcomes must be the same
	@$(BIN)/python -m tests.training.keras_own $(ARGS)

versions: $(READY) ## the tests that kill trainings, with each minor version of Keras from 3.10 to the newest
	@$(BIN)/python -m tests.versions $(ARGS)

bench: $(READY) ## every benchmark, one after the other
	@missed=; for bench in benchmarks/bench_*.py; do \
		echo "== $$bench"; $(BIN)/python "$$bench" || missed="$$missed $$bench"; \
	done; [ -z "$$missed" ] || { echo "bench: a target was missed, or it failed:$$missed" >&2; exit 1; }

install-service: ## as root: install training-runner.service, or upgrade it in place (systemd/README.md)
	@systemd/install.sh install

uninstall-service: ## as root: remove the service; jobs and state are left
	@systemd/install.sh uninstall

clean: ## remove .venv and all caches; jobs and state are left
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	find runner tests jobs benchmarks -name __pycache__ -prune -exec rm -rf {} +
