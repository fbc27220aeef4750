# Every target makes its own environment in .venv the first time.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: train test bench gpu lint clean

train: $(VENV)/train.done  ## train on embedded data, compare losses, print the table, draw the plot
	$(BIN)/lpl-fused train $(ARGS)

test: $(VENV)/test.done  ## the whole suite; what needs a GPU skips and says so
	$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile $(ARGS)

bench: $(VENV)/test.done  ## time every backend against eager and torch.compile
	$(BIN)/python -m benchmarks.run $(ARGS)

gpu: $(VENV)/gpu.done  ## on a CUDA machine: tests on the device, then the benchmark
	$(BIN)/python -m pytest -m "gpu or not gpu" $(ARGS)
	$(BIN)/python -m benchmarks.run

lint: $(VENV)/dev.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror csrc/*.h csrc/cpu/* tests/*.cpp
	$(BIN)/mypy

clean:
	rm -rf build dist *.egg-info $(VENV)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip

# torch first and pinned: a plain "torch" would bring gigabytes of CUDA libraries
$(VENV)/torch.done: constraints.txt | $(BIN)/python
	$(PIP) torch==$$(sed -n 's/^torch==//p' constraints.txt)
	touch $@

$(VENV)/train.done $(VENV)/test.done $(VENV)/dev.done: $(VENV)/%.done: $(VENV)/torch.done pyproject.toml setup.py $(wildcard csrc/*.h csrc/cpu/*)
	$(PIP) -c constraints.txt -e ".[$*]"
	touch $@

# the machine's own CUDA torch and its triton
$(VENV)/gpu.done: pyproject.toml setup.py $(wildcard csrc/*.h csrc/cpu/*)
	$(PYTHON) -m venv --system-site-packages $(VENV)
	$(PIP) -e ".[bench]" expecttest hypothesis pytest
	touch $@
