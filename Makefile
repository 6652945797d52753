# What people and CI call. `make run` and `make test` work on a fresh clone; everything else builds on them.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check --no-input
GENERATOR = $(VENV)/generator
FAULT_TESTS = tests/faults
PART = guardrails
guardrails_TESTS = tests/faults/test_guardrails_*.py tests/contract/test_decisions.py tests/contract/test_guardrail_reasons.py $(wildcard tests/unit/test_policy*.py)
approvals_TESTS = tests/faults/test_approvals*.py tests/contract/test_approv*.py tests/contract/test_relay_waits.py tests/conformance/test_approved_writes.py
notifications_TESTS = $(wildcard tests/*/test_notif*.py tests/*/test_deliveries*.py tests/*/test_outbound*.py tests/*/test_webhook_signatures.py tests/*/test_standard_webhooks.py)
NODE_PACKAGES = tests/node/node_modules/.package-lock.json
INSPECTOR = tests/node/inspector/node_modules/.package-lock.json

.PHONY: help setup setup-dev run test faults acceptance mcp-conformance check format docs lock bench bench-growth bench-instructions bench-latency bench-profile clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.runtime ## create the virtual environment with the runtime dependencies

setup-dev: $(VENV)/.dev $(GENERATOR)/.installed $(NODE_PACKAGES) ## add the development dependencies

run: setup ## start the gateway and a sandbox (options: ARGS="--port 0 --sandbox-port 0")
	@$(BIN)/birdwire dev $(ARGS)

test: setup-dev ## run the whole test suite
	@$(BIN)/python -m pytest -n 3 $(PYTEST_ARGS)

check: setup-dev ## lint, formatting, types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: setup-dev ## apply the formatter and the safe fixes
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

faults: setup-dev ## the fault tests in their long form, and build/faults.md: FAULTS_KILLS=1000 and the like say how long
	@mkdir -p build && rm -f build/faults.jsonl
	@FAULTS=long FAULTS_REPORT=build/faults.jsonl $(BIN)/python -m pytest -n 2 --timeout 7200 $(FAULT_TESTS) $(PYTEST_ARGS); \
		ended=$$?; $(BIN)/python tests/harness/report.py build/faults.jsonl > build/faults.md; cat build/faults.md; exit $$ended

acceptance: ## a part's tests in their long form, and build/faults.md (options: PART=approvals or notifications, PYTEST_ARGS="-k pause")
	@$(MAKE) --no-print-directory faults FAULT_TESTS="$($(PART)_TESTS)"

mcp-conformance: setup-dev $(INSPECTOR) ## the conformance suite of the Model Context Protocol against /mcp, as a table; and its Inspector
	@PYTHONPATH=tests $(BIN)/python -m harness.mcp_conformance
	@FAULTS=long $(BIN)/python -m pytest tests/contract/test_mcp_clients.py -k inspector

docs: setup ## regenerate docs/reference and skills/birdwire/SKILL.md from the code
	@$(BIN)/python -m birdwire.surfaces.reference docs/reference
	@$(BIN)/python -m birdwire.surfaces.skill skills/birdwire/SKILL.md

lock: setup-dev ## pin every dependency by hash again
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --upgrade \
		--extra mcp pyproject.toml requirements/runtime.in --output-file requirements/runtime.txt
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --upgrade \
		--group dev --extra mcp --constraint requirements/runtime.txt pyproject.toml requirements/runtime.in --output-file requirements/dev.txt
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --upgrade \
		--group generator --output-file requirements/generator.txt
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --upgrade \
		bench/requirements.in --output-file bench/requirements.txt

bench: setup ## what a like costs here, beside nginx, Node, FastAPI and others: bench/results (options: ARGS="--help")
	@$(BIN)/python -m bench $(ARGS)

bench-growth: setup ## what it costs with many accounts, a long journal, replicas (options: ARGS="--help")
	@$(BIN)/python -m bench.growth $(ARGS)

bench-instructions: setup ## count the instructions and bytecodes of a like (options: ARGS="--help"); needs valgrind, nginx
	@$(BIN)/python -m bench.instructions $(ARGS)

bench-latency: setup ## where the time of a like goes at one connection (options: ARGS="--help")
	@$(BIN)/python -m bench.latency $(ARGS)

bench-profile: setup ## where the microseconds of a like go (options: ARGS="--help")
	@$(BIN)/python -m bench.profile $(ARGS)

clean: ## remove what the other targets made, but not your data
	rm -rf $(VENV) bench/.venv bench/.venv-gateway bench/.work bench/peers/node_modules tests/node/node_modules tests/node/inspector/node_modules .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Birdwire needs Python 3.11 or newer; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "Python's venv module is missing. On Debian and Ubuntu: sudo apt-get install python3-venv"; exit 1; }
	@echo "Creating $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@PYTHONPATH=src $(BIN)/python -m bench.interpreters

$(VENV)/.runtime: requirements/runtime.txt pyproject.toml | $(VENV)/bin/python
	@echo "Installing the runtime dependencies (hash-pinned) ..."
	@$(PIP) install -qq --require-hashes --requirement requirements/runtime.txt
	@$(PIP) install -qq --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.runtime
	@echo "Installing the development dependencies (hash-pinned) ..."
	@$(PIP) install -qq --require-hashes --requirement requirements/dev.txt
	@touch $@

# The tests generate a Python client with this, in an environment of its own inside the other.
$(GENERATOR)/.installed: requirements/generator.txt | $(VENV)/bin/python
	@echo "Installing the generator of Python clients (hash-pinned) ..."
	@$(BIN)/python -m venv --clear --without-pip $(GENERATOR)
	@$(PIP) --python $(GENERATOR) install -qq --require-hashes --requirement requirements/generator.txt
	@touch $@

# The tests of JavaScript clients need these. Without npm the rest still works, and those tests name what is missing.
# The Inspector is as large as all the others, so only its own target installs it.
$(NODE_PACKAGES) $(INSPECTOR): %/node_modules/.package-lock.json: %/package-lock.json
	@if command -v npm >/dev/null; then \
		echo "Installing the npm packages of the tests (hash-pinned) ..."; \
		npm ci --loglevel=error --prefix $* >/dev/null && touch $@; \
	else \
		echo "npm is missing: the tests of JavaScript clients will not run. On Debian and Ubuntu: sudo apt-get install nodejs npm"; \
	fi
