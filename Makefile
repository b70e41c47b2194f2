# Each command sets up what it needs in .venv; `make help` lists them.
# Variables: PROFILE=smoke|paper (book), PYTHON=/path/to/python (set-up).

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help setup book pdf test lint check lab clean

PROFILE ?= paper
OUT ?= $(if $(filter paper,$(PROFILE)),_build,_build/$(PROFILE))
BIN := .venv/bin
STAMP := .venv/.installed

# Succeeds on a Python that runs, is in range and can make environments (some shims are found but do not run).
PROBE := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	"$$p" -c "$(PROBE)" >/dev/null 2>&1 && echo "$$p" && break; done)

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-6s %s\n", $$1, $$2}' Makefile

setup: $(STAMP) ## install everything into .venv (about 3 GB down, 6 GB on disk, 2 to 3 minutes)

$(STAMP): requirements.txt pyproject.toml
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1 || ! $(BIN)/python -c "$(PROBE)" 2>/dev/null; then \
		"$(PYTHON)" -c "$(PROBE)" >/dev/null 2>&1 \
			|| { echo "Error: Python 3.11, 3.12 or 3.13 (with venv) is needed, but not found: make PYTHON=/path/to/python3.12" >&2; exit 1; }; \
		"$(PYTHON)" -m venv --clear .venv; \
	fi
	@echo "Installing requirements.txt into .venv (the first time about 3 GB down, 2 to 3 minutes) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@$(BIN)/bslib book --assets-only
	@touch $@

book: $(STAMP) ## render the book into _build/html (PROFILE=smoke: computed anew in minutes, into _build/smoke/html)
	@$(BIN)/bslib book --profile $(PROFILE) --out $(OUT)

# The first part of _toc.yml as one page, printed by a browser. The notebooks are those of the last `make book` of the paper's profile.
CHROMIUM ?= chromium
BUILT := _build/.work/source
pdf: $(STAMP) ## print the article part of the book to _build/article.pdf, after `make book`; needs Chromium
	@test -d $(BUILT)/book/executed || { echo "Error: no executed notebooks: run make book first" >&2; exit 1; }
	@awk '/caption: Play/ {exit} 1; END {print "      - file: book/bibliography"}' _toc.yml > $(BUILT)/article.yml
	@cd $(BUILT) && $(CURDIR)/$(BIN)/jupyter-book build . -q --builder singlehtml --toc article.yml --path-output $(CURDIR)/_build/article
	@cd _build/article/_build/singlehtml && cp book/executed/intro.html article.html && \
	$(CHROMIUM) --headless --no-sandbox --disable-gpu --no-pdf-header-footer --virtual-time-budget=60000 \
		--print-to-pdf=$(CURDIR)/_build/article.pdf file://$$PWD/article.html 2>/dev/null
	@ls -l _build/article.pdf

# A smoke book from nothing, with a store of its own, then every test; a book that fails is a failed test.
# A file of tests is one process's, with its fixtures; a process of one thread for each core is faster than one of many threads.
# In the order of their names, the long files of pages and notebooks come first and the many short ones of doctests last.
test: lint ## run the checks, a smoke book built from nothing, every test
	@cache=$$(mktemp -d) && trap 'rm -rf "$$cache"' EXIT && trap 'exit 130' INT TERM && rm -rf _build/test && start=$$(date +%s) && \
	{ BSLIB_CACHE="$$cache" $(BIN)/bslib book --profile smoke --out _build/test || echo "The smoke book failed: see above." >&2; } && \
	took=$$(( $$(date +%s) - start )) && echo "Smoke book: $$took s" && \
	BSLIB_BUILT="$(CURDIR)/_build/test/html" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

check: lint ## lint, format, types, notebooks without outputs
	@$(BIN)/python -m pytest -q tests/test_repository.py -k notebook

lab: $(STAMP) ## open JupyterLab on the notebooks
	@$(BIN)/jupyter lab notebooks

clean: ## remove what was built; .venv, the user's cache and the fetched browser files stay
	rm -rf _build .mypy_cache .pytest_cache .ruff_cache .hypothesis
