# `make demo` and `make test` install what they need into .venv on first use.
.PHONY: install demo egolm_synthetic test test-quick mutants lint audit bench

bin := .venv/bin
# Tests in so many processes, each of up to 3 GB; 0 for one after another, as a debugger wants them.
WORKERS ?= 2
parallel = --numprocesses $(WORKERS) --dist worksteal

# The demo's and the tests' models are small: with two threads on two busy cores they ran 10 to 60 times
# slower than with one, because every small parallel region waits for a preempted thread.
export OMP_NUM_THREADS ?= 1
# Nothing is fetched at run time, so a wrong model path fails at once.
demo egolm_synthetic test test-quick mutants bench: export HF_HUB_OFFLINE = 1
# Its check for a newer version asks the network.
lint test: export PYRIGHT_PYTHON_IGNORE_WARNINGS = 1

install:
	@bash launch/install.sh

demo: install
	$(bin)/accelerate launch --config_file launch/accelerate/single.yaml grpo/train.py configs/demo.yaml

egolm_synthetic: install
	$(bin)/python -m grpo.motion.recipe

lint: install
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/pyright

test: lint
	$(bin)/python -m pytest $(parallel)

test-quick: install
	$(bin)/python -m pytest $(parallel) -m "not slow"

# Changes the pure modules that decide what is learned, one expression at a time, and lists the changes that none of their
# quick tests sees. It takes some hours on one core; tests/MUTANTS.md has the list with reasons.
mutants: install
	rm -rf mutants
	env -u PYTHONPATH $(bin)/mutmut run --max-children $(WORKERS)
	$(bin)/mutmut results

# Asks PyPI's advisories about the installed versions, and says what could not be asked about. Whichever of the two fails it,
# make ends with 2; `python launch/audit.py` ends with 1 for an advisory and with 2 for what could not be asked about.
audit: install
	$(bin)/python launch/audit.py

bench: install
	@set -e; for script in tests/benchmarks/bench_*.py; do PYTHONPATH=. $(bin)/python "$$script"; done
