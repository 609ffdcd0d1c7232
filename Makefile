PYTHON ?= python3
VENV ?= .venv
BIN = $(abspath $(VENV))/bin
SMALL = configs/quickstart/unified_small.py
RUN = work_dirs/unified_small

.PHONY: install demo quickstart lint types coverage environments wheel docs gpu-check test test-fast clean

# The stamp is rebuilt when the requirements change, so that a stale environment is never tested.
$(VENV)/.installed: setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	# The line of a long download is for terminals alone; in a file there would be silence for minutes.
	@(seconds=0; while sleep 10; do seconds=$$((seconds + 10)); echo "installing packages; $$seconds s"; done) & \
	ticker=$$!; trap "kill $$ticker" EXIT; $(VENV)/bin/python -m pip install --quiet -e ".[dev]"
	touch $@

install: $(VENV)/.installed

# A result within a minute of an installed environment: published weights, given boxes, a page to open.
demo: install
	$(BIN)/python -m unimed demo

# Sample data, a model that starts from nothing but LiteMedSAM's eyes, training, test, export, pictures.
# Every step finds what an interrupted run left and goes on from there.
quickstart: export PATH := $(BIN):$(PATH)
quickstart: install
	python tools/prepare_data.py sample --out data/sample
	test -d pretrained/unified_small || python tools/new_model.py pretrained/unified_small --data data/sample
	bash tools/dist.sh train $(SMALL) 1 --resume auto
	bash tools/dist.sh test $(SMALL) 1 --checkpoint $(RUN)
	test -d exports/unified_small || python tools/export.py $(SMALL) $(RUN) exports/unified_small
	python tools/show_quickstart.py exports/unified_small data/sample $(RUN)/pictures
	@echo "Done. Numbers: $(RUN)/test/metrics.md  Pictures: $(RUN)/test/overlay.png, $(RUN)/pictures  Model: exports/unified_small"

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/codespell
	$(VENV)/bin/python tests/repository_check.py

# What a user imports, and what it stands on; the list of modules is in pyproject.toml.
types: install
	$(VENV)/bin/mypy

# Lines and branches of the ground, metrics, losses and io that their own tests reach; the floor is in pyproject.toml.
coverage: install
	$(VENV)/bin/coverage erase
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(VENV)/bin/coverage run -m pytest -q tests/metrics tests/losses tests/io \
		tests/test_geometry.py tests/test_files.py tests/test_registry.py tests/test_structures.py tests/test_locks.py
	$(VENV)/bin/coverage report

wheel:
	$(PYTHON) -m pip wheel --no-deps --wheel-dir dist ./

# The wheel outside the clone on other Pythons: `make environments PYTHONS="python3.12 python3.13" LOWEST=--lowest`.
PYTHONS ?= $(PYTHON)
environments:
	$(PYTHON) tests/fresh_environments.py $(addprefix --python ,$(PYTHONS)) $(LOWEST)

# The documentation as a site in site/; a dead link is an error.
docs: install
	$(VENV)/bin/python -m mkdocs build --strict --site-dir site

# What breaks most often, in under a minute on two idle cores: names, structure, formats of small files, metrics, losses.
test-fast: lint
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(VENV)/bin/python -m pytest -n 2 -m "not slow" tests/metrics tests/losses \
		tests/test_architecture.py tests/test_words.py tests/test_registry.py tests/test_geometry.py tests/test_files.py

# On a machine with CUDA: everything computes there, compared with the CPU, and how fast; under ten minutes.
gpu-check: install
	$(VENV)/bin/python tests/gpu_check.py --out work_dirs/gpu_check

test: lint types
	# One thread each: two workers with two threads on two cores wait for one another.
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(VENV)/bin/python -m pytest -n 2 --dist worksteal tests

clean:
	rm -rf $(VENV) build dist *.egg-info
