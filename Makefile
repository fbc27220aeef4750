# Every target makes its own environment in .venv the first time.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PROCESSES ?= 4
PYTEST = $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=$(PROCESSES)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: train test fuzz bench docs gpu triton sanitize sanitize-cpu lint clean

train: $(VENV)/train.done  ## train on embedded data, compare losses, print the table, draw the plot
	$(BIN)/lpl-fused train $(ARGS)

test: $(VENV)/test.done  ## the whole suite; what needs a GPU skips and says so
	$(PYTEST) --dist=loadfile --no-loadscope-reorder $(ARGS)

fuzz: $(VENV)/test.done  ## 20,000 random calls of every function, backends against the reference in float64
	PYTHONPATH=tests $(BIN)/python tests/fuzz.py $(ARGS)

bench: $(VENV)/test.done  ## time every backend against eager and torch.compile
	$(BIN)/python -m benchmarks.run $(ARGS)

docs: $(VENV)/docs.done  ## the documentation as a site in build/site; a warning or a dead link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)
	@echo build/site/index.html

# a device compiles over a thousand Triton kernels for the file that tests all backends
gpu: PROCESSES = 12
gpu: TESTS = $(addprefix tests/test_,device.py backends.py multilabel_backends.py cuda.py cuda_groups.py cuda_binary.py rounding.py seam.py)
gpu: $(VENV)/gpu.done  ## on a CUDA machine: what concerns it of the tests, and the GPU tables, on one page of benchmarks/results
	rm -f build/tests.xml  # of an earlier run
	$(PYTEST) --dist=worksteal --junitxml=build/tests.xml $(ARGS) $(TESTS); tested=$$?; \
	  $(BIN)/python -m benchmarks.device_tables --seconds 240 --warm $(PROCESSES) --tests build/tests.xml \
	  && exit $$tested

triton: RELEASE = 3.6.0
triton: $(VENV)/test.done  ## what concerns Triton of the tests, with another release of it: make triton RELEASE=3.7.1
	test -f build/triton-$(RELEASE)/done || $(PIP) --no-deps --upgrade --target build/triton-$(RELEASE) triton==$(RELEASE)
	touch build/triton-$(RELEASE)/done
	PYTHONPATH=$(CURDIR)/build/triton-$(RELEASE) $(BIN)/python -c "import triton; assert triton.__version__ == '$(RELEASE)', triton"
	PYTHONPATH=$(CURDIR)/build/triton-$(RELEASE) $(PYTEST) $(ARGS) tests/test_triton_*.py

sanitize: $(VENV)/gpu.done  ## on a CUDA machine: the CUDA backend's tests under compute-sanitizer
	for tool in memcheck racecheck initcheck synccheck; do \
	  LPL_FUSED_POISON=0 PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $$tool --error-exitcode 1 \
	    --kernel-name kns=lpl --target-processes all \
	    $(BIN)/python -m pytest tests/test_cuda.py tests/test_cuda_groups.py tests/test_cuda_binary.py $(ARGS) || exit 1; \
	done

# the C++ kernels of a build of their own, whose run-time libraries come before Python's
sanitize-cpu: BUILT = build/sanitize
sanitize-cpu: $(VENV)/test.done  ## the random calls of `make fuzz` under the address and undefined-behaviour sanitizers
	CXX="$${CXX:-c++} -fsanitize=address,undefined -fno-omit-frame-pointer -g1 -D_GLIBCXX_ASSERTIONS" CXXFLAGS=-O1 \
	  LPL_FUSED_CUDA=0 LPL_FUSED_REQUIRE_EXT=cpu \
	  $(BIN)/python setup.py -q build --build-base $(BUILT) --build-lib $(BUILT)/lib
	LD_PRELOAD="$$($${CXX:-c++} -print-file-name=libasan.so) $$($${CXX:-c++} -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	  PYTHONPATH=$(BUILT)/lib:tests $(BIN)/python tests/fuzz.py --backends cpp --count 5000 $(ARGS)

lint: $(VENV)/dev.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror csrc/*.h csrc/cpu/* csrc/cuda/* tests/*.cpp tests/*.c
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

# without a device the CUDA module could only be imported, and nvcc takes minutes for it
$(VENV)/train.done $(VENV)/test.done $(VENV)/dev.done: export LPL_FUSED_CUDA ?= 0
$(VENV)/train.done $(VENV)/test.done $(VENV)/dev.done: $(VENV)/%.done: $(VENV)/torch.done pyproject.toml setup.py $(wildcard csrc/*.h csrc/cpu/*)
	$(PIP) -c constraints.txt -e ".[$*]"
	touch $@

# tools alone: the site is made from the text of the package
$(VENV)/docs.done: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -c constraints.txt --group docs
	touch $@

# PYTHON's own CUDA torch and its triton, wherever they are: of an environment that PYTHON is in,
# --system-site-packages would show those below it
$(VENV)/gpu.done: pyproject.toml setup.py $(wildcard csrc/*.h csrc/cpu/* csrc/cuda/*)
	$(PYTHON) -m venv $(VENV)
	$(PYTHON) -c "import sys; print(*(path for path in sys.path if path.endswith('-packages')), sep='\n')" \
	  > $$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/machine.pth
	$(BIN)/python -c "import torch; torch.cuda.init()"  # says so where there is no device
	$(PIP) -e ".[test]"
	touch $@
