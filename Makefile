# Every way of working with whatfits is a target here; `make help` lists them.
# Needs a Debian-like machine with Python 3.11 to 3.13 (with venv and pip), git and make. Nothing else.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

VENV ?= .venv
PORT ?= 8000
HOST ?= 127.0.0.1
WORKERS ?= 2
MINUTES ?= 8
TESTS ?= tests
ONLY ?=
# Pythons of environments with other library versions, separated by ":", and a checkout of lit-gpt (make accuracy).
STACK_PYTHON ?=
LITGPT ?=
BIN := $(VENV)/bin
STACK := torch==2.13.* transformers==4.57.6 peft==0.21.2
SOURCES := estimator optim_impls profiler service web
CHECKED := $(wildcard $(SOURCES) docker tests benchmarks)
MAX_FILE_LINES := 400

.PHONY: help setup serve test check format verify bench docs-optimizers docs-architectures accuracy profiles gpu-first gpu-campaign images clean

help: ## show this list
	@awk 'BEGIN { FS = ":.*## " } /^[a-z][a-z-]*:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.dev ## create .venv with everything: product, tests, tools (does nothing when up to date)

serve: $(VENV)/.agent ## start the web page, the REST API and an agent that measures on http://127.0.0.1:8000 (make serve PORT=8765)
	$(BIN)/whatfits serve --host $(HOST) --port $(PORT)

test: $(VENV)/.dev ## run the tests (make test TESTS=tests/estimator)
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow and not gpu" $(TESTS)

check: $(VENV)/.dev ## format, lint, types, import contracts, dependencies, images and compose file, file lengths
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy $(CHECKED)
	$(BIN)/lint-imports
	$(BIN)/deptry $(SOURCES)
	$(BIN)/hadolint $(wildcard docker/*.Dockerfile)
	$(BIN)/docker-compose --env-file docker/check.env --profile '*' config --quiet
	@find $(CHECKED) -path benchmarks/gpu_recordings -prune -o -name '*.py' -exec wc -l {} + \
	  | awk '$$2 != "total" && $$1 > $(MAX_FILE_LINES) { print $$2 ": " $$1 " lines, at most $(MAX_FILE_LINES)"; bad = 1 } END { exit bad }'

format: $(VENV)/.dev ## rewrite the sources as `make check` wants them
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

verify: $(VENV)/.dev ## the full acceptance runs; writes docs/verify.md (make verify ONLY=faults,measured: these alone)
	$(BIN)/python tests/verify/run.py $(ONLY)

bench: $(VENV)/.dev ## measure speed on this machine, ask other tools the same; writes benchmarks/
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python benchmarks/run.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/optimizers.py
	STACK_PYTHON='$(STACK_PYTHON)' $(BIN)/python benchmarks/peers/run.py

docs-optimizers: $(VENV)/.dev ## write docs/optimizers.md from the registry of optimizers
	$(BIN)/python benchmarks/optimizers_page.py

docs-architectures: $(VENV)/.dev ## try the classes of transformers that were not tried yet; writes docs/architectures.md
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/architectures.py

accuracy: $(VENV)/.dev ## compare estimates with published and recorded runs; writes docs/accuracy.md
	$(BIN)/python benchmarks/accuracy/run.py --stack-python '$(STACK_PYTHON)' $(if $(LITGPT),--litgpt '$(LITGPT)')

profiles: $(VENV)/.dev $(if $(STACK_PYTHON),,.stack/bin/python) ## trace the models again and rebuild the shipped memory profiles of both stacks
	$(BIN)/python -m whatfits.profiler.trace.build_profiles
	for python in $(subst :, ,$(or $(STACK_PYTHON),.stack/bin/python)); do \
	  $(BIN)/python -m whatfits.profiler.trace.build_profiles --python "$$python"; \
	done

# The second stack's libraries and nothing else. Environments that exist are named like this:
#   make profiles STACK_PYTHON=/path/to/venv/bin/python
.stack/bin/python: | $(BIN)/python
	$(BIN)/python -m venv .stack
	.stack/bin/python -m pip install --quiet $(STACK) || { rm -rf .stack; exit 1; }

gpu-first: $(VENV)/.dev ## on a machine with a CUDA device: compare real steps with the model, event by event
	$(BIN)/python -m whatfits.profiler.gpu_first

gpu-campaign: $(VENV)/.dev ## on a machine with a GPU: measure the standing campaign (make gpu-campaign MINUTES=8 ARGS=--dry-run: print it)
	$(BIN)/python -m whatfits.profiler.gpu_campaign --minutes $(MINUTES) $(ARGS)

images: ## build both images without Docker (root; buildah, mmdebstrap) and run what was built
	python3 docker/build_here.py

clean: ## remove .venv, caches and build results
	rm -rf $(VENV) .stack dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(BIN)/python:
	@for candidate in $${PYTHON:-} python3 python3.13 python3.12 python3.11; do \
	  if "$$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; then \
	    "$$candidate" -m venv $(VENV) || { rm -rf $(VENV); exit 1; }; exit 0; \
	  fi; \
	done; \
	echo "whatfits needs Python 3.11, 3.12 or 3.13 on the PATH (or: make PYTHON=/path/to/python3.12 ...)" >&2; exit 1

# Pages and API need no torch, the local agent does: without it, pip install '.[service]' and whatfits serve.
$(VENV)/.agent: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[agent]'
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all]' --group dev
	touch $(VENV)/.agent $@
