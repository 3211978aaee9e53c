# The verbs of this project, the same here and in CI; each sets up what it needs.
PYTHON ?= python3
RUN := .venv/bin/python
export PYTHONDONTWRITEBYTECODE ?= 1

.PHONY: help setup up down test check bench pins

help: ## show this list
	@grep -hE '^[a-z]+:.*## ' Makefile | sed 's/:.*## /\t/' | expand -t 10

setup: ## virtual environment and Pulumi CLI
	@$(PYTHON) tools/setup.py

up: setup ## sandbox, forwarder and subscription on this machine; sends a text and shows the mail
	@$(RUN) tools/sandbox_stack.py up

down: setup ## remove all that `make up` made
	@$(RUN) tools/sandbox_stack.py down

test: ## every test
	@$(PYTHON) tools/setup.py --dev
	@$(RUN) -m pytest

check: ## style, types and the boundaries between the parts
	@$(PYTHON) tools/setup.py --dev --no-cli
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(RUN) .venv/bin/lint-imports

bench: ## the figures of the documentation
	@$(PYTHON) tools/setup.py --dev

pins: ## write requirements*.txt from pyproject.toml
	@$(PYTHON) tools/setup.py --dev --no-cli
	@$(RUN) tools/pins.py
