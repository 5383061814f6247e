# Every verb is one line of `make help`. PYTHON is the interpreter that the virtual environment is made of.
PYTHON ?= python3
# How many tests run at once; most of them wait for something.
WORKERS ?= 3
MINUTES ?= 30
VENV := .venv
BIN := $(VENV)/bin

# What an installation depends on. The installation points at the checkout, so that code needs no other one.
PACKAGING := setup.cfg setup.py balsam_lite/templates/balsamactivate balsam_lite/templates/balsamdeactivate
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-long lint format bench docs clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /    make \1|/p' $(MAKEFILE_LIST) | column -t -s '|'

venv: $(VENV)/.installed ## make .venv and install balsam in it

demo: $(VENV)/.installed ## run ten jobs in a temporary DB and show their histories
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/hello/demo.sh

test: $(VENV)/.installed-test ## run the tests; ARGS='-k name' picks some, WORKERS=0 runs one after the other
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal $(ARGS)

test-long: $(VENV)/.installed-test ## kill everything at random for MINUTES=30, on one host and on two; SEED=N repeats
	$(BIN)/python tests/campaign.py --world both --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(ARGS)

lint: $(VENV)/.installed-dev ## ruff check, ruff format --check, mypy (needs Python 3.10 or newer)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev ## let ruff sort the imports and lay out the code
	$(BIN)/ruff check --select I --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed ## measure; one JSON line for each benchmark; FULL=1 for the sizes of the goals
	@PYTHON="$(CURDIR)/$(BIN)/python" sh benchmarks/run_all.sh

docs: $(VENV)/.installed-docs ## build docs/ into build/docs, and the manual page build/man/balsam.1; needs Python 3.11 or newer
	$(BIN)/sphinx-build -W --keep-going -q -b html docs build/docs
	$(BIN)/sphinx-build -W --keep-going -q -b man docs build/man

clean: ## remove .venv and all that was built
	rm -rf $(VENV) build dist docs/generated *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made:
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.made $(PACKAGING)
	$(INSTALL) .
	@touch $@

$(VENV)/.installed-%: $(VENV)/.made $(PACKAGING)
	$(INSTALL) '.[$*]'
	@touch $@ $(VENV)/.installed
