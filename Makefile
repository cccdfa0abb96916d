# One verb a chore. `make` alone lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Bytecode is kept, whatever the shell says. Every step is a process, and without it each one compiles
# again what it imports: the greater part of a short step's time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup setup-dev retrain test test-slow lint serve ui docs docs-serve bench bench-vllm-env clean

help: ## list the verbs
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

# A stamp holds what was installed: setting up a second time is quick, and a changed pin sets up again.
$(VENV)/.stamp-run: pyproject.toml constraints.txt .ci/install
	@PYTHON=$(PYTHON) .ci/install pipeline
	@touch $@

$(VENV)/.stamp-dev: pyproject.toml constraints.txt .ci/install
	@PYTHON=$(PYTHON) .ci/install dev
	@touch $@ $(VENV)/.stamp-run

setup: $(VENV)/.stamp-run ## install what the line needs into .venv

setup-dev: $(VENV)/.stamp-dev ## install what the tests need as well

retrain: setup ## run the whole line: data, reward model, policy, evaluation, registration, promotion
	@$(BIN)/python -m flows.retrain

test: setup-dev ## run the tests
	@# one file stays on one worker, the longest first as tests/conftest.py orders them; three workers
	@# on two cores, because many tests wait for servers; one thread each, OpenMP's teams would wait
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder \
		-m "not slow" --durations=12

test-slow: setup-dev ## run the tests that take minutes
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m slow

lint: setup-dev ## style, types, import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

serve: setup ## answer OpenAI chat requests with the promoted model
	@$(BIN)/stateset-agents serve

ui: setup ## open the MLflow and Prefect pages
	@$(BIN)/python -m flows.ui

docs: setup-dev ## build the pages of docs/ into build/site, with a search; a broken link is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build
	@echo "build/site/index.html"

docs-serve: setup-dev ## show the pages on port 8001, and again when they change
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --dev-addr 127.0.0.1:8001

bench: setup-dev ## measure speed and memory against TRL, vLLM and the machine (25 minutes of two quiet cores)
	@[ -d data/base_model ] || $(BIN)/python -m tasks.fetch_base_model
	@$(BIN)/python -m benchmarks

bench-vllm-env: ## make the environment of its own that `make bench` finds vLLM in
	@$(PYTHON) -m venv --clear benchmarks/.venv-vllm
	@benchmarks/.venv-vllm/bin/pip install -q -r benchmarks/requirements-vllm.txt

clean: ## remove caches, logs and unfinished runs (data, models, the registry, paid judgements and .venv stay)
	@# .stateset/judge holds answers that were paid for, and what was spent
	[ ! -d .stateset ] || find .stateset -mindepth 1 -maxdepth 1 ! -name judge -exec rm -rf {} +
	rm -rf .prefect .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
