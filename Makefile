# make demo    set up .venv, then train, evaluate and time the demo study; reports/ has the result
# make test    the same set-up and the developers' tools, then every test, on all cores
# make test-fast   those that need no more than a moment, for work on the code
# make test-doors  those that need a machine of their own: wheels, browsers, queues (make test leaves them out)
# make lint    ruff, mypy, snakefmt, snakemake --lint
# make smoke   the whole workflow on a tiny random model
# make dag     docs/dag.md, the picture of the workflow
# make unlock  after a killed run: "Directory cannot be locked"
# make clean   drop what runs made (models, data, logs, own results and reports); .venv stays
#
# CONFIG=config/NAME.yaml runs another study, CORES=N uses other than 8, PYTHON=... another interpreter.

CORES ?= 8
ifndef PYTHON
PYTHON := $(firstword $(foreach name,python3 python3.14 python3.13 python3.12 python3.11,$(shell \
  $(name) -c 'import sys; print("$(name)" if sys.version_info >= (3, 11) else "")' 2>/dev/null)))
endif

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --use-pep517 -c constraints.txt
SNAKEMAKE := $(BIN)/snakemake --cores $(CORES)
# A worker a core; a file's tests stay together, for their fixtures, and tests/durations.py has the long files first.
PYTEST := $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-fast test-doors lint smoke dag unlock clean help

demo: .venv/.stamp
	$(SNAKEMAKE) $(if $(CONFIG),--configfile $(CONFIG) --) all

test: .venv/.stamp-dev
	$(PYTEST) -m "not door"

test-fast: .venv/.stamp-dev
	$(PYTEST) -m "not slow and not door"

test-doors: .venv/.stamp-dev
	$(BIN)/python -m pytest -m door

lint: .venv/.stamp-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint

smoke: .venv/.stamp
	$(SNAKEMAKE) --configfile config/tiny.yaml -- all

# Mermaid, because it needs no graphviz and is drawn where the README is read; less its title and colours.
dag: .venv/.stamp
	@mkdir -p docs
	$(BIN)/snakemake --rulegraph mermaid-js -- all > docs/.dag
	{ echo '```mermaid'; awk 'NR > 3 && !/style/' docs/.dag; echo '```'; } > docs/dag.md
	@rm docs/.dag

unlock: .venv/.stamp
	$(BIN)/snakemake --unlock

clean:
	git clean -fdXq -- models data logs results reports .snakemake

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

# torch first and alone, so that everything else is resolved for the build of it that is there.
.venv/.stamp: pyproject.toml constraints.txt
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo >&2 \
	  "lkv needs Python 3.11 or newer$(if $(PYTHON),; $(PYTHON) is not). Name one: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo >&2 \
	  "$(PYTHON) cannot make virtual environments. Install its venv module (Debian: apt install python3-venv)"; exit 1; }
	@echo "Setting up .venv: about 2 GB, a few minutes"
	$(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) -e ".[all]"
	@touch $@

.venv/.stamp-dev: .venv/.stamp
	$(PIP) -e ".[all,dev]"
	@touch $@
