# Needs Python 3.11 or newer and make; everything else is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo study test test-all test-beam lint clean

demo: .venv/users
	$(BIN)/python -m llama_cpt.demo

study: .venv/users
	$(BIN)/python -m llama_cpt.study

# Two at a time, a file's tests in one process: they share what is made once.
test: .venv/testers
	$(BIN)/python -m pytest -n 2 --dist loadfile

# In the order of the files, for the longest are not those of many tests.
test-all: test test-beam
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -vv -m slow

# In an environment of its own: Beam wants another protobuf.
test-beam: .venv-beam/testers
	.venv-beam/bin/python -m pytest tests/data/test_beam_corpora.py

lint: .venv/testers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/users: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[eval]'
	touch $@

.venv/testers: .venv/users
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@

.venv-beam/testers: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv-beam
	.venv-beam/bin/python -m pip install --quiet --disable-pip-version-check -e '.[beam]' \
		beartype hypothesis pytest
	touch $@

clean:
	rm -rf .venv .venv-beam runs
