# The verbs of this project, the same here and in CI; each sets up what it needs.
PYTHON ?= python3
RUN := .venv/bin/python
export PYTHONDONTWRITEBYTECODE ?= 1

# The version is looked at here because an older Python cannot even read the set-up.
SETUP := $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "set-up: Python 3.11 or newer is needed and \
	%s is %s: install a newer one and name it, e.g. `make up PYTHON=python3.12`." \
	% (sys.executable, sys.version.split()[0]))' && $(PYTHON) tools/setup.py

.PHONY: help setup up down test test-server check bench soak pins

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed 's/:.*## /\t/' | expand -t 14

setup: ## virtual environment and Pulumi CLI
	@$(SETUP)
	@$(if $(filter setup,$(MAKECMDGOALS)),command -v pulumi >/dev/null || \
		echo 'set-up: done. To type `pulumi`: export PATH="$$(.venv/bin/python tools/pulumi_cli.py path):$$PATH"')

up: setup ## sandbox, forwarder and subscription on this machine; sends a text and shows the mail
	@$(RUN) tools/sandbox_stack.py up

down: setup ## remove all that `make up` made
	@$(RUN) tools/sandbox_stack.py down

test: ## every test that needs no server of its own
	@$(SETUP) --dev
	@$(RUN) -m pytest -n auto --maxprocesses 4 --dist loadfile

test-server: ## the server hosting on throw-away Debian machines (root; half an hour)
	@$(SETUP) --dev
	@$(RUN) -m pytest -n auto --maxprocesses 2 --dist loadfile tests/server

check: ## style, types and the boundaries between the parts
	@$(SETUP) --dev --no-cli
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(RUN) .venv/bin/lint-imports

bench: ## the figures of the documentation, into bench/*.md (most of an hour)
	@$(SETUP) --dev
	@cli=$$($(RUN) tools/pulumi_cli.py path) && for part in sandbox forwarder provider server; do \
		PATH="$$cli:$$PATH" $(RUN) -m bench.$$part || exit; done

soak: ## kill and break a forwarder under load, again and again, into bench/soak.md
	@$(SETUP) --dev
	@$(RUN) -m bench.soak

pins: ## write requirements*.txt from pyproject.toml
	@$(SETUP) --dev --no-cli
	@$(RUN) tools/pins.py
