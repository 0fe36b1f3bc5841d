PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test mutants lint clean

$(BIN)/robgib: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -e ".[torchattacks]"
	@touch $(BIN)/robgib

$(VENV)/.test: pyproject.toml $(BIN)/robgib
	$(BIN)/python -m pip install --disable-pip-version-check -e ".[test]"
	@touch $@

demo: $(BIN)/robgib  ## install, train two small networks, attack them, write the page
	$(BIN)/robgib evaluate digits-cnn digits-vit

test: $(VENV)/.test  ## lint, types, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n 2 --dist worksteal

mutants: $(VENV)/.test  ## does a test fail for each small change of a formula? hours; MUTANTS='robgib.statistics.*' for some
	$(BIN)/python -m pip install --disable-pip-version-check "mutmut>=3.8"
	OMP_NUM_THREADS=1 $(BIN)/mutmut run $(if $(MUTANTS),'$(MUTANTS)')
	$(BIN)/python benchmarks/mutants.py

clean:
	rm -rf $(VENV) runs mutants
