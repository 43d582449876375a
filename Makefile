# Every target works on a fresh clone: it first makes .venv with whatever it needs. Interpreter: make PYTHON=python3.12

PYTHON ?= python3
PORT ?= 8000
BIN = .venv/bin
WITH_SERVERS = exec $(BIN)/python -m billing_site.local run --
COMPILE = $(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-emit-index-url \
	--custom-compile-command 'make lock' $(UPGRADE)

help: ## list the targets (the default)
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

demo: packages-local ## the whole service on this machine until Ctrl-C; pages on PORT (8000)
	@PORT='$(PORT)' exec $(BIN)/python -m billing_site.local demo

demo-reset: packages-local ## delete the demo's data
	@exec $(BIN)/python -m billing_site.local demo-reset

manage: packages-local ## a command beside the running demo: make manage RUN="advance_subscriptions --help"
	@exec $(BIN)/python -m billing_site.local run --demo -- python manage.py $(RUN)

test: lint types ## everything that has to pass: lint, types, migrations, checks, tests; ARGS go to pytest
	@$(WITH_SERVERS) sh -ec '\
		python manage.py makemigrations --check --dry-run; \
		python manage.py check; \
		python -m pytest -n 2 --dist loadfile -m "not long" $(ARGS)'

test-long: packages-dev ## what `make test` leaves out: races a hundred times, years under random kills; ARGS go to pytest
	@$(WITH_SERVERS) python -m pytest -n 2 --dist loadfile -m long $(ARGS)

lint: packages-dev ## ruff: rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: packages-dev ## mypy (its Django plug-in imports the settings)
	@$(WITH_SERVERS) mypy .

format: packages-dev ## let ruff rewrite what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: packages-dev ## the benchmarks, each beside its floor; one of them: make bench ONLY=intake
	@$(WITH_SERVERS) python -m tests.bench $(ONLY)

lock: packages-dev ## resolve requirements*.in again; everything to its newest: make lock UPGRADE=--upgrade
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@for set in '' -local -dev; do $(COMPILE) requirements$$set.in --output-file requirements$$set.txt || exit 1; done
	@$(COMPILE) --no-deps requirements-spec.in --output-file requirements-spec.txt

clean: ## delete .venv, .local (with the demo's data) and caches
	@if ls .venv/installed-* >/dev/null 2>&1; then $(BIN)/python -m billing_site.local demo-reset; fi
	@rm -rf .venv .local .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

packages-%:
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON) here. Install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@exec $(PYTHON) billing_site/local/bootstrap.py $*

.PHONY: help demo demo-reset manage test test-long lint types format bench lock clean
