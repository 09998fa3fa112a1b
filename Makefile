# Headrace. `make demo` and `make test` do all the set-up that they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
.DEFAULT_GOAL := help
.PHONY: help demo serve test check format services bench-cpu test-gpu schemas clean

help:  ## what there is to make
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Headrace needs Python 3.11 or later: set PYTHON=..."; exit 1; }
	@echo "making $(VENV) (torch, transformers and the rest; a few minutes the first time)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "torch==2.13.0" "numpy<2.4"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $(STAMP)

demo: $(STAMP)  ## the service, a streamed answer and a batch, then shut down
	$(BIN)/python -m cli.demo

serve: $(STAMP)  ## the service on port 8000 until Ctrl-C
	$(BIN)/headrace serve

check: $(STAMP)  ## format, lint, strict types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)  ## rewrite files in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

services:
	@bash tests/install_services.sh

test: $(STAMP) check services  ## check, then all tests (RabbitMQ and Postgres are started by the suite)
	$(BIN)/python -m pytest -q -m "not gpu"

test-gpu: $(STAMP)  ## the tests that need a CUDA device
	$(BIN)/python -m pytest -q -m gpu

bench-cpu: $(STAMP)  ## Headrace and transformers side by side on this CPU
	$(BIN)/headrace bench cpu

schemas: $(STAMP)  ## write the JSON Schemas of the wire messages
	$(BIN)/python -m schemas.export

clean:  ## remove what make made
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache *.egg-info
