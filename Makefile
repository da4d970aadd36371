# Everything works on a fresh machine: each target makes the environment it needs first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SETTINGS := constraints.txt setup.py embedded/setup.py embedded/panoptic/setup.py

.PHONY: demo test check format lint types install dev clean

demo: install  ## make data, train a small model, score it, draw what it sees
	$(BIN)/python demo/quickstart.py

test: dev  ## the test suite
	$(BIN)/python -m pytest -n 2

check: format lint types test  ## what must pass before a commit

format: dev
	$(BIN)/ruff format --check .

lint: dev
	$(BIN)/ruff check .

types: dev
	$(BIN)/mypy

install: $(VENV)/installed
dev: $(VENV)/installed-dev

$(VENV)/installed: requirements.txt $(SETTINGS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -r requirements.txt
	touch $@

$(VENV)/installed-dev: requirements-dev.txt requirements.txt $(SETTINGS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -r requirements-dev.txt
	touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) output
