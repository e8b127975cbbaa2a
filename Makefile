# Every target does all it needs, on a machine with git, make and Python 3.10 or newer: tools/setup.sh
# makes .venv and finds a compiler. Stamp files in .venv record what is done, so a second call is quick.

VENV := .venv
PY := $(VENV)/bin/python
# cmake, ninja and clang-format come from .venv; tests call them by name.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

PYTHON_FILES := python tests bench examples tools caffe/pythonpath
# Not caffe/, which is in Caffe's style: tests run Caffe's own lint on it.
CPP_FILES = $(shell find cpp cuda python/bindings tests/native tests/fuzz bench examples/cpp \
  \( -name "*.cpp" -o -name "*.h" -o -name "*.cu" -o -name "*.cuh" \) 2>/dev/null)
# Folders too: their time changes when a file is removed. But not bench, which is a target.
PACKAGE_FILES := $(filter-out bench,$(shell find cpp cuda cmake python bench caffe -name __pycache__ -prune -o -name '*.sw?' -o -print))

# Extra arguments: make test ARGS="-k accuracy", make bench ARGS=...
ARGS ?=

# One pip at a time in .venv.
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo demo-caffe test test-long bench lint format overlay clean

help:
	@echo 'make demo       train on a real image with the native loss and write a picture'
	@echo 'make demo-caffe train a U-net with a real Caffe, its own layer against ours'
	@echo 'make test       run the tests          (ARGS="-k word" chooses)'
	@echo 'make test-long  run the long tests'
	@echo 'make bench      measure against other systems'
	@echo 'make overlay    write the kernels into caffe/ (after a change in cpp/)'
	@echo 'make lint       clang-format, ruff, mypy'
	@echo 'make format     rewrite the sources as lint wants them'
	@echo 'make clean      remove everything that make made'

demo: $(VENV)/.demo $(VENV)/.package
	$(PY) examples/demo_coins.py $(ARGS)

demo-caffe: $(VENV)/.demo-caffe $(VENV)/.package $(VENV)/.caffe
	$(PY) examples/demo_caffe.py $(ARGS)

# Two processes, for most tests use one CPU; a file's tests stay together, since they share what is built.
test: $(VENV)/.test $(VENV)/.package-cuda $(VENV)/.caffe
	$(PY) -m pytest -n 2 --dist loadfile $(ARGS)

test-long: $(VENV)/.test $(VENV)/.package-cuda $(VENV)/.caffe $(VENV)/.cross
	$(PY) -m pytest -m long $(ARGS)

bench: $(VENV)/.bench $(VENV)/.package
	$(PY) -m bench $(ARGS)

lint: $(VENV)/.lint
	clang-format --dry-run --Werror $(CPP_FILES)
	$(PY) -m ruff check $(wildcard $(PYTHON_FILES))
	$(PY) -m ruff format --check $(wildcard $(PYTHON_FILES))
	$(PY) -m mypy

format: $(VENV)/.lint
	clang-format -i $(CPP_FILES)
	$(PY) -m ruff check --fix $(wildcard $(PYTHON_FILES))
	$(PY) -m ruff format $(wildcard $(PYTHON_FILES))

overlay: $(VENV)/.lint
	$(PY) tools/make_overlay.py

clean:
	rm -rf $(VENV) build dist demo_coins.png demo_caffe.png .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find $(wildcard $(PYTHON_FILES)) -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/.venv: tools/setup.sh
	sh tools/setup.sh
	@touch $@

$(VENV)/.cross $(VENV)/.caffe: $(VENV)/.%: $(VENV)/.venv
	sh tools/setup.sh $*
	@touch $@

$(VENV)/.build $(VENV)/.demo $(VENV)/.demo-caffe $(VENV)/.test $(VENV)/.bench $(VENV)/.lint: $(VENV)/.%: $(VENV)/.venv pyproject.toml
	$(PY) -m pip install --quiet --group $*
	@touch $@

INSTALL := -m pip install --quiet --no-build-isolation -C build-dir='build/{wheel_tag}'
NEEDED_BY_PACKAGE := $(VENV)/.build CMakeLists.txt README.md $(PACKAGE_FILES)

# With the CUDA kernels, where nvcc is found: a minute.
$(VENV)/.package-cuda: $(NEEDED_BY_PACKAGE)
	$(PY) $(INSTALL) -C cmake.define.SIGMOID_CE_CUDA=AUTO .
	@touch $@ $(VENV)/.package

# Without them, for those who need not wait; but never in the place of a package that has them.
$(VENV)/.package: $(NEEDED_BY_PACKAGE)
	if [ -e $@-cuda ]; then cuda=AUTO; else cuda=OFF; fi; $(PY) $(INSTALL) -C cmake.define.SIGMOID_CE_CUDA=$$cuda .
	@if [ -e $@-cuda ]; then touch $@-cuda; fi
	@touch $@
