# Two commands do everything: `make quickstart` and `make test`. Each sets up what it needs (see scripts/setup.sh).
VENV ?= .venv
export VENV
export OMP_WAIT_POLICY = PASSIVE
export MUJOCO_GL ?= egl
bin = $(VENV)/bin

.PHONY: quickstart test test-fast lint setup clean

quickstart: setup
	$(bin)/ideomotor quickstart $(ARGS)

test: setup-browser lint
	$(bin)/python -m pytest -q

test-fast: setup
	$(bin)/python -m pytest -q -m "not sim and not slow and not browser"

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
