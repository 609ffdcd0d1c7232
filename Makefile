PYTHON ?= python3
VENV ?= .venv

.PHONY: install test lint clean

# The stamp is rebuilt when the requirements change, so that a stale environment is never tested.
$(VENV)/.installed: setup.py requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -e ".[dev]"
	touch $@

install: $(VENV)/.installed

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

test: lint
	$(VENV)/bin/python -m pytest -n 2 tests

clean:
	rm -rf $(VENV) build dist *.egg-info
