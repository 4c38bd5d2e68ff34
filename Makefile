# Needs Python 3.11 or newer and make; everything else is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo study test test-all test-beam proofs lint clean

demo: .venv/users
	$(BIN)/python -m examples.demo

study: .venv/users
	$(BIN)/python -m examples.study

# Two at a time; a worker that has no test left takes over half of what the other has left.
PYTEST = $(BIN)/python -m pytest -n 2 --dist worksteal --durations=10 -rs

test: .venv/testers
	$(PYTEST)

# One session: fast and slow tests share the workers and what they compiled.
test-all: .venv/testers test-beam
	$(PYTEST) -m 'not proof'

# By hand, for an hour or two; the results belong into a commit.
proofs: .venv/provers
	$(BIN)/python -m tests.proofs

# In an environment of its own: Beam wants another protobuf.
test-beam: .venv-beam/testers
	.venv-beam/bin/python -m pytest tests/data/test_beam.py

lint: .venv/testers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/basedpyright

.venv/users: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[eval]'
	touch $@

.venv/testers: .venv/users
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@

.venv/provers: .venv/testers
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[proofs]'
	touch $@

.venv-beam/testers: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv-beam
	.venv-beam/bin/python -m pip install --quiet --disable-pip-version-check -e '.[beam]' \
		beartype hypothesis pytest
	touch $@

clean:
	rm -rf .venv .venv-beam runs
