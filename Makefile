# `make demo` fits, clusters and draws the bundled data; `make test` lints and runs every test but those that are slow by
# nature (notebooks, the examples of the documentation, a browser, several processes, Triton's interpreter, peak memory,
# whole fits of real data), which `make test-slow` runs; `make tutorials` executes the notebooks in tutorials/ anew; `make
# docs` builds the site. Each sets up .venv on its first run and again only when pyproject.toml or constraints.txt has
# changed. PYTHON=... picks another interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt
NEEDS := pyproject.toml constraints.txt

# each worker runs whole files, and so sets up what the tests of a file share once
PYTEST := $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile

.PHONY: demo test test-slow tutorials docs lint clean

demo: $(VENV)/.demo-stamp
	$(BIN)/scvae demo

test: lint
	$(PYTEST) -m "not slow"

test-slow: $(VENV)/.test-stamp
	$(PYTEST) -m slow

# in fresh kernels, and writes them back with their outputs
tutorials: $(VENV)/.test-stamp
	$(BIN)/python tutorials/execute.py

lint: $(VENV)/.test-stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy scvae
	$(BIN)/lint-imports --no-logo

# no warning is let through, a link or name that leads nowhere included
docs: $(VENV)/.docs-stamp
	$(BIN)/python -m sphinx -q -n -W --keep-going -b html docs docs/_build/html
	@echo "The site begins at docs/_build/html/index.html"

clean:
	rm -rf $(VENV) demo dist docs/_build docs/generated .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.venv-stamp:
	@command -v $(PYTHON) >/dev/null || { echo "make: there is no $(PYTHON); pass PYTHON=, Python 3.11 or newer" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else \
		"make: $(PYTHON) is Python %d.%d; pass PYTHON=, Python 3.11 or newer" % v[:2])'
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.demo-stamp: $(NEEDS) | $(VENV)/.venv-stamp
	@echo "Installing scvae into $(VENV); the first time this takes a few minutes"
	$(INSTALL) -e .
	@touch $@

# after the plain install, never beside it: two pips in one environment would spoil it under make -j
$(VENV)/.test-stamp: $(NEEDS) $(VENV)/.demo-stamp
	@echo "Installing the test tools into $(VENV)"
	$(INSTALL) -e '.[test]'
	@touch $@

# after the test tools only where both are asked for at once
$(VENV)/.docs-stamp: $(NEEDS) $(VENV)/.demo-stamp | $(if $(filter test test-slow tutorials lint,$(MAKECMDGOALS)),$(VENV)/.test-stamp)
	@echo "Installing the documentation tools into $(VENV)"
	$(INSTALL) -e '.[docs]'
	@touch $@
