# Thin: each target does all of its own set-up in .venv.
PYTHON ?= python3
MESSAGE ?= Asylo Rocks
# For the shell as a variable: quotes and dollars stay what they are.
export QUICKSTART_MESSAGE := $(value MESSAGE)
SECONDS ?= 60
COUNT ?= 100
SEED ?= 1
LANES ?= 4
ROUNDS ?= 3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup wheels quickstart quickstart-remote test repeat coverage lint docs bench bench-imports fuzz chaos clean

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml constraints.txt hatch_build.py $(wildcard src/adyton/*.proto)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# What tests put into images: published packages.
wheels: $(VENV)/wheels/ready

$(VENV)/wheels/ready: $(VENV)/ready tests/wheels.txt
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --require-hashes --no-deps --only-binary :all: --dest $(VENV)/wheels -r tests/wheels.txt
	@touch $@

quickstart: setup
	@cd examples/quickstart && $(abspath $(BIN))/adyton run quickstart -- --message "$$QUICKSTART_MESSAGE"

quickstart-remote: setup
	@$(BIN)/python examples/quickstart_remote/run.py "$$QUICKSTART_MESSAGE"

# make example-hello ARGS='--names="Alice,Bob"': examples/NAME/run.py
example-%: setup
	@$(BIN)/python examples/$*/run.py $(ARGS)

# Three at a time on two processors: many tests wait most of the time.
test: setup wheels
	$(BIN)/python -m pytest -n 3 --dist worksteal

# make test: of tests that start enclaves with each of several parameters, every other one, drawn anew in each run (tests/thorough.py).
# make repeat COUNT=20: all tests so often, each time in another random order, and all that `make test` tries a part of (THOROUGH=1).
repeat: setup wheels
	$(BIN)/python measure/repeat.py --count $(COUNT)

# The tests once more, slower, with the lines and branches that all processes ran, enclaves' too. Details: .coverage-data/html
coverage: setup wheels
	$(BIN)/python measure/run.py -n 2

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The pages that are made from the code.
docs: setup
	$(BIN)/adyton syscalls --markdown > docs/syscalls.md

bench: setup
	$(BIN)/python bench/run.py

# What it costs to import pandas from an image, beside plain CPython.
bench-imports: setup wheels
	$(BIN)/python bench/imports.py

# make bench-hostcalls ONLY=read,sqlite DELAYS=0,20 ROUNDS=1: host calls at a distance, beside the same work done otherwise.
.PHONY: bench-hostcalls
bench-hostcalls: setup
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r bench/requirements.txt
	@$(BIN)/python bench/hostcalls.py --only "$(ONLY)" --delays "$(DELAYS)" --rounds $(ROUNDS)

# make bench-communicator ONLY=empty,threads DELAYS=0,20 ROUNDS=1: calls beside bare gRPC, RPyC, Pyro5 and Ray.
.PHONY: bench-communicator
bench-communicator: setup
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r bench/requirements-calls.txt
	@$(BIN)/python bench/communicator.py --only "$(ONLY)" --delays "$(DELAYS)" --rounds $(ROUNDS)

# Where the microseconds of an empty call go; as root, which perf needs.
.PHONY: bench-hops
bench-hops: setup
	@$(BIN)/python bench/hops.py --rounds $(ROUNDS)

# What the attested channel costs, beside the same in the clear.
.PHONY: bench-attestation
bench-attestation: setup
	@$(BIN)/python bench/attestation.py --rounds $(ROUNDS)

# Other ways to build the path of a call, beside a bare gRPC echo.
.PHONY: bench-paths
bench-paths: setup
	@$(BIN)/python bench/paths.py --rounds $(ROUNDS)

# make soak SECONDS=3600: calls from many threads and tasks, the connection cut all the time; each must run exactly once.
.PHONY: soak
soak: setup
	@$(BIN)/python bench/soak.py --seconds $(SECONDS)

# make fuzz SECONDS=600 TARGET=policy: each target (or that one) for so long; CPython 3.11 on x86-64 only. What it grows is kept by fuzz/run.py --keep.
fuzz: setup
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r fuzz/requirements.txt
	@nice $(BIN)/python fuzz/run.py --seconds $(SECONDS) $(TARGET)

# make conformance MODULES="files test_socket": CPython's own tests in an enclave, all of them or these areas and modules.
.PHONY: conformance
conformance: setup
	@nice $(BIN)/python conformance/conformance_run.py $(MODULES)

# make chaos COUNT=100 SEED=1 LANES=4: kill -9 and SIGSTOP of each party at so many moments; 1000 of them take about 20 minutes.
chaos: setup
	@nice $(BIN)/python chaos/run.py --count $(COUNT) --seed $(SEED) --lanes $(LANES)

# make chaos-broker SECONDS=60 SEED=1: a broker under load, with wrong evidence of all kinds, killed and started again.
.PHONY: chaos-broker
chaos-broker: setup
	@nice $(BIN)/python chaos/broker_load.py --seconds $(SECONDS) --seed $(SEED)

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage-data
