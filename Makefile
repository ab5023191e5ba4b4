# Two commands do everything: `make quickstart` and `make test`. Each sets up what it needs (see scripts/setup.sh).
VENV ?= .venv
export VENV
export OMP_WAIT_POLICY = PASSIVE
export MUJOCO_GL ?= egl
bin = $(VENV)/bin
# A process a core, at most four, each with one thread; the tests of a file stay together, for what they share.
pytest = OMP_NUM_THREADS=1 $(bin)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile

.PHONY: quickstart test test-fast lint setup clean

quickstart: setup
	$(bin)/ideomotor quickstart $(ARGS)

test: setup-browser lint
	$(pytest)

test-fast: setup
	$(pytest) -m "not sim and not slow and not browser"

lint: setup
	$(bin)/ruff format --check .
	$(bin)/ruff check .
	$(bin)/mypy
	$(bin)/lint-imports

setup:
	@scripts/setup.sh

.PHONY: setup-browser
setup-browser:
	@scripts/setup.sh --browser

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
