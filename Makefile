# Two commands on a fresh machine: `make quickstart` and `make test`. `make check` is all of CI.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
WORKERS ?= 2
# cases at a time of quickstart; 0: one for each core
JOBS ?= 0

.PHONY: quickstart test check lint types imports wheel clean

quickstart: $(INSTALLED)
	$(BIN)/attnbench run suites/quick.yaml --jobs $(JOBS)

test: $(INSTALLED)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

check: lint types imports test wheel

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

imports: $(INSTALLED)
	$(BIN)/lint-imports

wheel: $(INSTALLED)
	$(BIN)/python .ci/wheel_check.py

# torch first and alone: the constraint's plain version is the CPU build where one is offered
$(INSTALLED): pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch -c constraints.txt
	$(BIN)/python -m pip install --quiet --editable '.[dev]' -c constraints.txt
	touch $(INSTALLED)

clean:
	rm -rf $(VENV) build dist runs .pytest_cache .mypy_cache .ruff_cache
