PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test slow docs dist matrix mutants clean

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
	$(BIN)/python -m compileall -q robgib  # for the processes that tests start, also where PYTHONDONTWRITEBYTECODE is set
	$(BIN)/python -m pytest -n 2 --dist worksteal

slow: $(VENV)/.test $(VENV)/.docs  ## convergence, long parity, guides, notebooks, the package, the site
	$(BIN)/python -m pytest -m slow -n 2 --dist worksteal

docs: $(VENV)/.docs  ## the site, in site/; links that lead nowhere are errors
	$(BIN)/python docs/reference.py
	$(BIN)/zensical build --clean --strict

$(VENV)/.docs: pyproject.toml $(BIN)/robgib
	$(BIN)/python -m pip install --disable-pip-version-check -e ".[docs]"
	@touch $@

dist: $(VENV)/.test  ## sdist and wheel in dist/, installed and run in an environment of their own
	rm -rf dist
	$(BIN)/python -m hatchling build -t sdist -t wheel
	$(PYTHON) -m venv dist/.venv
	dist/.venv/bin/python -m pip install --disable-pip-version-check dist/*.whl
	cd dist && .venv/bin/robgib doctor && .venv/bin/robgib evaluate digits-cnn --quick --samples 100 --no-information

matrix:  ## the default tests with each release of torch; TORCH=2.6 for one
	$(PYTHON) benchmarks/matrix.py $(TORCH)

mutants: $(VENV)/.test  ## does a test fail for each small change of a formula? MUTANTS="--sample 60 robgib/statistics.py"
	$(BIN)/python benchmarks/mutants.py --jobs 2 $(MUTANTS)

clean:
	rm -rf $(VENV) .matrix .site runs dist site
