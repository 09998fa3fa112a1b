# Headrace. `make demo` and `make test` do all the set-up that they need.
#
#   PYTHON       the Python to make the environment from, 3.11 or later
#   GPU_PYTHON   for test-gpu, a Python that has everything already, instead of the environment
#   VENV         where the environment is made
#   PARTS        processes that share out the tests; 1 runs them one after the other
#   TORCH_INDEX  where torch comes from, if not from PyPI. PyPI's build for Linux on x86-64 brings CUDA, some gigabytes;
#                https://download.pytorch.org/whl/cpu has one without.
PYTHON ?= python3
VENV ?= .venv
PARTS ?= 3
TORCH_INDEX ?=
TORCH := torch==2.13.0

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt
TORCH_STAMP := $(VENV)/.installed-torch
RUNTIME := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
CLIENTS := $(VENV)-clients

.DEFAULT_GOAL := help
.PHONY: help torch install demo serve check format services test test-gpu test-clients bench-cpu chaos schemas lock clean

help:  ## what there is to make
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Headrace needs Python 3.11 or later; $(PYTHON) is not. Say which: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "making $(VENV)"
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

# torch first and alone: it is the long download, and pip shows its progress.
$(TORCH_STAMP): pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing $(TORCH)"
	@$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	@touch $@

$(RUNTIME): $(TORCH_STAMP)
	@echo "installing the other dependencies: a minute or two"
	@$(PIP) --quiet --editable .
	@touch $@

$(DEV): $(RUNTIME)
	@echo "installing what checks and tests need"
	@$(PIP) --quiet --editable ".[dev]"
	@touch $@

torch: $(TORCH_STAMP)

install: $(RUNTIME)  ## the environment, with what the service needs

demo: $(RUNTIME)  ## the service, a streamed answer and a batch, then shut down
	@$(BIN)/python -m cli.demo

serve: $(RUNTIME)  ## the service on port 8000 until Ctrl-C
	@$(BIN)/headrace serve

check: $(DEV)  ## format, lint, strict types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(DEV)  ## rewrite files in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

services:
	@bash tests/install_services.sh

test: check services  ## check, then all tests; installs RabbitMQ and Postgres where they are missing and it can
	$(BIN)/python -m pytest -q -m "not gpu" -n $(PARTS) --dist loadfile --no-loadscope-reorder

test-gpu: $(if $(GPU_PYTHON),,$(DEV))  ## the tests that need a CUDA device; GPU_PYTHON=python3: with what is installed there
	$(or $(GPU_PYTHON),$(BIN)/python) -m pytest -q -m gpu
	@command -v compute-sanitizer >/dev/null || { echo "no compute-sanitizer here: memory was not checked"; exit 0; }; \
	  compute-sanitizer --tool memcheck --error-exitcode 1 \
	  $(or $(GPU_PYTHON),$(BIN)/python) -m pytest -q -m gpu tests/kernels -k "float16 and not bfloat16"

$(CLIENTS)/.installed: tests/clients/requirements.txt
	@$(PYTHON) -m venv $(CLIENTS)
	@$(CLIENTS)/bin/python -m pip install --disable-pip-version-check --quiet --requirement $<
	@touch $@

test-clients: $(RUNTIME) $(CLIENTS)/.installed  ## LangChain's and LiteLLM's clients, in an environment of their own
	HEADRACE=$(BIN)/headrace $(CLIENTS)/bin/python -m pytest -q -c tests/clients/pytest.ini --rootdir . \
	  --confcutdir tests/clients tests/clients

bench-cpu: $(RUNTIME)  ## Headrace and transformers side by side on this CPU
	@$(BIN)/headrace bench cpu

chaos: $(RUNTIME) services  ## a thousand jobs while everything is killed in turn; CHAOS="--jobs 10000" for more
	@$(BIN)/headrace bench chaos $(CHAOS)

schemas: $(RUNTIME)  ## write the JSON Schemas of the wire messages
	$(BIN)/python -m schemas.export

lock: $(DEV)  ## pin what the pinned packages depend on
	@{ sed -n '/^#/p' constraints.txt; \
	   $(BIN)/python -m pip freeze --exclude-editable | grep -ivE '^(torch|triton|nvidia|cuda)' | LC_ALL=C sort -f; \
	} > constraints.new && mv constraints.new constraints.txt

clean:  ## remove what make made
	rm -rf $(VENV) $(CLIENTS) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info
