# Two commands suffice on a new machine: `make study` and `make test`.
VENV := .venv
BIN := $(VENV)/bin
EXTRAS ?= dev
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
	$$name -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
	&& echo $$name && break; done)

.PHONY: study test test-slow env lint bench gpu clean

study: env  ## the complete study at the scale of params.yaml
	$(BIN)/snakemake --cores all

test: env lint  ## lint, types, and all tests with both engines' smoke runs
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

test-slow: env  ## tests that take minutes: every kernel for every architecture, two processes
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

BENCH ?= reports/measured/local
bench: env  ## the CPU benchmarks, without training_settings.py, which takes hours; results in $(BENCH)
	for script in $(filter-out %/gpu_session.py %_settings.py %/ratio_gradient.py %/table.py,$(wildcard benchmarks/*.py)); do \
	  echo "== $$script"; \
	  $(BIN)/python $$script --json $(BENCH)/$$(basename $$script .py).json || exit 1; \
	done

gpu:  ## all GPU measurements, in minutes; a second call resumes. Installs nothing and uses PYTHON's packages
	$(PYTHON) benchmarks/gpu_session.py $(GPU)

env: $(VENV)/.installed  ## the environment, in .venv; uses uv if available

$(VENV)/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11-3.13 on PATH; install one, or name it: make env PYTHON=/path/to/python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	if uv --version >/dev/null 2>&1; then \
	  uv pip install --python $(BIN)/python -c constraints.txt -e '.[$(EXTRAS)]'; \
	else \
	  $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'; \
	fi
	$(BIN)/python -c 'from sf.torchvision_shim import install_at_start; install_at_start()'
	touch $@

clean:  ## remove the output of runs, not the environment
	rm -rf results reports/mini reports/smoke .snakemake
