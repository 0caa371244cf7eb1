.DEFAULT_GOAL := help
BIN := .venv/bin
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Two stamps: `make demo` needs only what a user of the library installs.
.venv/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[dev]'
	@touch .venv/.demo-installed $@

.venv/.demo-installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable .
	@touch $@

$(BIN)/python:
	@sh scripts/make_venv.sh "$(PYTHON)"

##@ Start here
.PHONY: help setup check test
help: ## Show these verbs
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z][a-z0-9-]*:.*## / {printf "  \033[36m%-12s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)
setup: .venv/.installed ## Create .venv and install everything (safe to repeat)
check: lint types unit ## Seconds; run it before each commit
test: check integration ## Everything; what .ci/run calls

##@ See it work
.PHONY: demo up-local down-local up bench
demo: .venv/.demo-installed ## Run a real job on embedded engine and two workers (DIR=directory to survey)
	@$(BIN)/python -m avtomatika demo $(if $(DIR),--directory "$(DIR)")
up-local: setup ## Start redis, every service and two workers on this machine
	@$(BIN)/python scripts/up_local.py
down-local: ## Stop what up-local started
	@test ! -x $(BIN)/python || $(BIN)/python scripts/up_local.py --down
up: ## Start the suite in containers (not yet)
	@echo "The container deployment comes later; until then 'make up-local' starts the whole suite." >&2; exit 1
bench: setup ## Steps and tasks per second beside the floors of this machine, and how late timers are
	@$(BIN)/python tests/bench/chain.py
	@$(BIN)/python tests/bench/timers.py
	@$(BIN)/python tests/bench/tasks.py

##@ Code
.PHONY: fmt lint types clean
fmt: setup ## Format, and fix what can be fixed
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .
lint: setup ## Ruff, formatting, and who-may-import-whom
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/lint-imports
types: setup ## mypy --strict on the source, pyright strict on everything
	$(BIN)/mypy && $(BIN)/pyright
clean: down-local ## Remove .venv, caches and the suite's run files
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache dist run
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

##@ Tests (T=path or T='-k expression' narrows any of them)
.PHONY: unit integration
unit: setup ## Everything that needs no server; seconds
	$(BIN)/pytest -n auto -m "not integration and not chaos and not e2e and not bench" $(T)
integration: setup ## What starts servers and processes
	$(BIN)/pytest -n auto --dist loadfile -m "integration or chaos or e2e" $(T)

.PHONY: chaos chaos-points model
chaos: setup ## Kill, pause and cut off the whole suite under load, then look for what was lost (MINUTES=2 SEED=)
	@$(BIN)/python -m tests.chaos --minutes $(or $(MINUTES),2) $(if $(SEED),--seed $(SEED))
chaos-points: setup ## Kill each service before and after each of its writes to Redis; most of an hour
	@$(BIN)/python -m tests.chaos.points
model: setup ## Every schedule of larger small worlds of the commit and lease protocol; minutes
	@$(BIN)/python -m tests.model
