PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

# Idle OpenMP threads that spin slow a shared machine down many times over.
export OMP_WAIT_POLICY := passive
export PYTHONUNBUFFERED := 1

.PHONY: help .venv demo test test-long test-wandb test-sweep exhaustive faults claims lint format bench clean

help:
	@echo "make demo     what keeps an agent learning? Fifteen small ones, compared, in about three minutes"
	@echo "make test     run the tests"
	@echo "make test-long   the rest of them: whole commands, pairs of interventions, killed and compared (as long again)"
	@echo "make test-wandb   install wandb into an environment of its own, beside .venv, and test --wandb in it"
	@echo "make test-sweep   the same with Ray: a cluster of two nodes that loses one, a sweep that is killed"
	@echo "make exhaustive   all triples of interventions on every agent, and what compiles (about 15 minutes)"
	@echo "make faults   full disks, flipped bytes, killed processes, two writers: what came of each, counted"
	@echo "make claims   every study in tiny runs (python -m experiments.reproduce all-cpu decides the claims)"
	@echo "make lint     check style and format (make format repairs what it can)"
	@echo "make bench    steps per second, beside Stable-Baselines3 and bare loops (about half an hour)"
	@echo "make clean    remove caches and build leftovers; runs/ and .venv stay"

.venv: $(READY)

$(READY): requirements.txt
	@command -v $(PYTHON) > /dev/null || { \
		echo "error: $(PYTHON) was not found; install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: Python 3.11 or newer is needed, but $(PYTHON) is `$(PYTHON) --version`; name another: make PYTHON=python3.11"; exit 1; }
	@echo "Installing the packages of requirements.txt into .venv (a few minutes the first time) ..."
	@$(PYTHON) -m venv .venv
	@( while sleep 15; do echo "  still installing: `du -sh .venv | cut -f1` so far"; done ) & alive=$$!; \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt; code=$$?; \
		kill $$alive; exit $$code
	@touch $(READY)

demo: $(READY)
	@$(BIN)/python -m experiments.demo

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-long: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'long and not faults and not exhaustive'

test-wandb: .venv-wandb/.ready
	.venv-wandb/bin/python -m pytest tests/experiments/test_wandb.py

test-sweep: .venv-sweep/.ready
	.venv-sweep/bin/python -m pytest tests/experiments/sweep/test_on_ray.py

# Each sees the packages of .venv, which stays without its own.
OWN_wandb := wandb==0.31.0
OWN_sweep := -r requirements-sweep.txt
.venv-%/.ready: $(READY)
	@$(BIN)/python -m venv .venv-$*
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$(.venv-$*/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/beside.pth"
	@.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check $(OWN_$*)
	@touch $@
.venv-sweep/.ready: requirements-sweep.txt

exhaustive: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m exhaustive

faults: $(READY)
	$(BIN)/python -m pytest tests/faults -m 'faults or not faults'

claims: $(READY)
	$(BIN)/python -m experiments.reproduce all-cpu --quick

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	@$(BIN)/python -m benchmarks.throughput

clean:
	rm -rf .pytest_cache .ruff_cache .hypothesis build dist *.egg-info MUJOCO_LOG.TXT
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
