# Two commands for a stranger: `make demo`, `make test`. Both set up what they need.
VENV ?= .venv
PYTHON ?= python3
export VENV PYTHON
SHELL := bash
.DEFAULT_GOAL := help
.PHONY: help setup demo test nightly lint format clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */\1\t/' | expand -t 10

setup:  ## make .venv with everything (idempotent)
	@scripts/setup.sh

demo: setup  ## train a small LLaMA here: stopped in the middle, resumed, exported, loaded
	@PATH="$(abspath $(VENV))/bin:$$PATH" scripts/demo.sh

test: setup  ## lint, then every test but the nightly ones (SLURM is installed where this is root on Debian)
	@scripts/setup.sh --slurm
	@$(MAKE) --no-print-directory lint
	@$(VENV)/bin/python -m pytest -n auto tests/unit tests/packaging $(PYTEST_ARGS)
	@$(VENV)/bin/python -m pytest --ignore tests/unit --ignore tests/packaging $(PYTEST_ARGS)

nightly: setup  ## the tests that take long: other SLURM versions (root; debootstrap), every disturbance on Kubernetes
	@scripts/setup.sh --nightly
	@$(VENV)/bin/python -m pytest -m nightly $(PYTEST_ARGS)

lint: setup  ## ruff, mypy, import directions, shellcheck, hadolint
	@$(VENV)/bin/ruff check --quiet
	@$(VENV)/bin/ruff format --check --quiet
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports --no-cache
	@git ls-files '*.sh' .ci/run | xargs $(VENV)/bin/shellcheck
	@$(VENV)/bin/hadolint Dockerfile

format: setup  ## let ruff repair and format
	@$(VENV)/bin/ruff check --fix --quiet
	@$(VENV)/bin/ruff format --quiet

clean:  ## delete what the tools made (.venv and runs/ stay)
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
