# Everything sets itself up: `make demo` and `make test` work in an empty clone with Python 3.11 or newer.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PROMPT ?= a red ball moving right on a white background
OUT    ?= out/demo.mp4

# OpenMP threads that spin can be 20 times slower when the cores are shared.
export OMP_WAIT_POLICY ?= passive

.PHONY: demo test test-all check format wheel clean docs

# Users on a GPU install without the constraints file (pip install .) and get their own build of torch.
$(VENV)/.run: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.run
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: $(VENV)/.run  ## the user's own command, with the checkpoint in weights/default
	mkdir -p $(dir $(OUT))
	$(BIN)/dvgen sample "$(PROMPT)" --size 640x360 --frames 48 --seed 7 --output $(OUT) --overwrite

# One process for each core, each of one thread: twice as many threads as cores would wait for one another.
test: $(VENV)/.dev  ## the default tests: minutes on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4

test-all: $(VENV)/.dev  ## the slow ones too
	$(BIN)/python -m pytest -m "not gpu"

check: $(VENV)/.dev  ## lint, format, types, architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py

docs: $(VENV)/.dev  ## docs/cli.md, from the help of the commands
	$(BIN)/python -m typer dvgen.main utils docs --name dvgen --title "The command line" --output docs/cli.md

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(VENV)/.dev
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) dist build out
