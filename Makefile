# `make demo` and `make test` need Python 3.11 or newer, make, and a package index; nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint fingerprints clean
.DELETE_ON_ERROR:

# The demo: every model of device_matrix.yaml on every device of it.
demo: $(VENV)/.installed
	$(BIN)/pytest --devices=device_matrix.yaml

# The project's own tests: fast ones first, then those that drive the real adb and the simulator.
test: $(VENV)/.installed
	$(BIN)/pytest tests/unit tests/plugin tests/e2e

lint: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The fingerprints of the simulated chips that the package carries, taken anew; see docs/reference/fingerprint.md.
fingerprints: $(VENV)/.installed
	$(BIN)/devicelab fingerprint \
	  --devices v68_sm8350,v69_sm8450,v73_sm8550,v75_sm8650,v79_sm8750,v81_sm8850 \
	  --out 'pytest_devicelab/audit/data/fingerprint_{hexagon}.json'

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; say make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[all]'
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
