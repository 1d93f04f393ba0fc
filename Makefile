# Every command a contributor or a CI machine needs. `make help` lists them.

# The first interpreter on the path that is new enough; `make install PYTHON=...` chooses another.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
FOLDERS := cli device export server shared simulations
LOCK_VENV := build/lock

.DEFAULT_GOAL := help
.PHONY: help install demo test test-deployed test-slow bench bench-cohort bench-growth bench-device bench-cold bench-drift bench-quality bench-window bench-audit bench-secure bench-server bench-wire bench-byzantine bench-stragglers bench-ab bench-strategies lint typecheck check lock clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' Makefile

install: $(STAMP)  ## set up .venv with the locked versions; does nothing when it is current

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make install needs Python 3.11 or newer on the path" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,sim]'
	@touch $@

demo: install  ## run the whole flow on the built-in population and write report.html
	$(BIN)/ownlet demo

test: install  ## run the fast tests, a process per core
	$(BIN)/python -m pytest -n logical --dist loadfile

test-deployed: install  ## run servers and nodes as real processes, killed in the middle; minutes
	$(BIN)/python -m pytest -m slow tests/deployed

test-slow: install  ## run the slow tests
	$(BIN)/python -m pytest -m slow

bench: bench-cohort bench-growth bench-device bench-cold  ## run all benchmarks; tables on the terminal, files in bench/

bench-cohort: install  ## users per second beside Flower with Opacus and pfl; writes bench/cohort.json
	$(BIN)/python -m ownlet.simulations.benchmarks.users_per_second --cohorts 50,500,5000

bench-growth: install  ## time and memory against users, cohort, rank and catalogue; writes bench/growth.json and .png
	$(BIN)/python -m ownlet.simulations.benchmarks.growth

bench-device: install  ## latency, size and memory of the device program, ledger, faults; writes bench/device.json
	$(BIN)/python -m ownlet.simulations.benchmarks.device

# On the real data sets that are there, else on the built-in population.
DATA := $(or $(OWNLET_DATA),../shared/data)
bench-quality: install  ## methods x epsilons x stages, hours on real data, resumable; writes bench/quality.json, .md, .png
	$(BIN)/ownlet bench quality \
		$(foreach name,movietweetings-100k movielens-1m.csv amazon-beauty,$(if $(wildcard $(DATA)/$(name)),--data $(DATA)/$(name)))

bench-window: install  ## gain against fleet size under window-level privacy; writes bench/window_level_*.json and .png
	$(BIN)/python -m ownlet.simulations.benchmarks.window_level

bench-audit: install  ## lower bounds of right trainers and engines, and thirteen broken ones; writes bench/audit.json
	$(BIN)/python -m ownlet.simulations.benchmarks.audit

bench-drift: install  ## rounds until each method recovers from a change of interests; writes bench/drift.json and .png
	$(BIN)/python -m ownlet.simulations.benchmarks.drift

bench-cold: install  ## new items and new users, by what is known of them; writes bench/cold_start.json and .png
	$(BIN)/python -m ownlet.simulations.benchmarks.cold_start $(addprefix --data ,$(wildcard $(DATA)/movietweetings-100k))

bench-secure: install  ## time and bytes of secure aggregation against the number of clients; writes bench/secure_sum.json
	$(BIN)/python -m ownlet.simulations.benchmarks.secure_sum

bench-server: install  ## updates per second of one server process, memory over 100,000 of them; writes bench/server.json
	OMP_NUM_THREADS=1 $(BIN)/python -m ownlet.simulations.benchmarks.server_load

bench-wire: install  ## bytes of a user and round, and quality, by the form of deltas; writes bench/wire.json
	$(BIN)/python -m ownlet.simulations.benchmarks.wire $(addprefix --data ,$(wildcard $(DATA)/movietweetings-100k))

bench-ab: install  ## false alarms and power of the sequential test on private reports; a table on the terminal
	$(BIN)/python -m ownlet.simulations.benchmarks.ab_test

bench-byzantine: install  ## what lying nodes do to the adapter, by combiner; writes bench/byzantine.json
	$(BIN)/python -m ownlet.simulations.benchmarks.byzantine --seeds 3 $(addprefix --data ,$(wildcard $(DATA)/movietweetings-100k))

bench-stragglers: install  ## hours to a quality with slow devices, by strategy; writes bench/stragglers.json, .png, .csv
	$(BIN)/python -m ownlet.simulations.benchmarks.stragglers $(addprefix --data ,$(wildcard $(DATA)/movietweetings-100k))

bench-strategies: install  ## strategies of the server x epsilons, tuned, resumable; writes bench/strategies.json
	$(BIN)/python -m ownlet.simulations.benchmarks.strategies $(addprefix --data ,$(wildcard $(DATA)/movietweetings-100k))

lint: install  ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The packages live in top-level folders, so mypy needs a tree in which they stand under `ownlet`.
typecheck: install  ## check types with mypy --strict
	@mkdir -p .typing/ownlet
	@for folder in $(FOLDERS); do ln -sfn ../../$$folder .typing/ownlet/$$folder; done
	$(BIN)/mypy $(FOLDERS:%=-p ownlet.%)

check: lint typecheck  ## lint and typecheck

# pip resolves pyproject.toml alone in a fresh environment, then freezes it. Local version labels (+cpu, +cu130) are cut,
# so the same file serves whichever build of torch a machine's package index offers.
lock:  ## choose current versions anew and write constraints.txt
	rm -rf $(LOCK_VENV)
	$(PYTHON) -m venv $(LOCK_VENV)
	$(LOCK_VENV)/bin/python -m pip install --quiet --disable-pip-version-check '.[dev,sim]'
	{ echo '# Made by `make lock`; do not edit.'; \
	  $(LOCK_VENV)/bin/python -m pip freeze --exclude ownlet | sed -E '/^(nvidia|cuda)-|^triton==/d; s/\+[A-Za-z0-9.]+$$//'; \
	} > $(LOCK_VENV)/constraints.txt
	mv $(LOCK_VENV)/constraints.txt constraints.txt

clean:  ## remove what the other commands made, except runs/
	rm -rf $(VENV) .typing .mypy_cache .ruff_cache .pytest_cache build dist *.egg-info
	find $(FOLDERS) tests -name __pycache__ -type d -prune -exec rm -rf {} +
