# Everything is set up in .venv by the first command that needs it; uv is used if it is there.
PYTHON ?= python3
BIN := .venv/bin
MARKS ?= not slow and not gpu and not tfds and not parity and not docs

PHANTOM := runs/phantom

.PHONY: demo demo-polyps test test-slow test-docs test-tfds test-onnx test-gpu parity docs newest lint setup clean

setup: .venv/installed

.venv/installed: pyproject.toml
	@if command -v uv >/dev/null; then \
	  UV_PYTHON_DOWNLOADS=never uv venv --quiet --allow-existing --python "$$(command -v $(PYTHON))" .venv && \
	  uv pip install --quiet --python $(BIN)/python -e '.[test]'; \
	else \
	  $(PYTHON) -m venv .venv && $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'; \
	fi
	@touch $@

demo: setup
	$(BIN)/python -m experiments.ablate digits --seeds 3 --arms baseline fsg fsg_gr --out runs/demo --resume

# Polyp sizing on made-up colonoscopy: the set, its index and folds, and a small experiment with its report.
demo-polyps: setup
	$(BIN)/python -m experiments.phantom --out $(PHANTOM)/raw --layout real-colon --polyps 48 --frames 12
	$(BIN)/python -m experiments.index real-colon $(PHANTOM)/raw --out $(PHANTOM)/index
	$(BIN)/python -m experiments.split $(PHANTOM)/index --out $(PHANTOM)/splits.csv --folds 3
	$(BIN)/python -m experiments.ablate polyp_phantom --data.index $(PHANTOM)/index --data.splits $(PHANTOM)/splits.csv \
	  --streams mask --arms baseline fsg_gr --train.epochs 15 --out $(PHANTOM)/runs --resume

# Compiling takes most of the time: here without XLA's costly passes, in all other test targets with them.
test: setup
	JAX_DISABLE_MOST_OPTIMIZATIONS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal -m "$(MARKS)"

test-slow: setup
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "slow and not gpu and not tfds and not parity and not docs"

# TensorFlow and tensorflow-datasets, which prepare CIFAR-100.
test-tfds: setup
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test,tfds]'
	$(BIN)/python -m pytest -q -m tfds

# The converter to ONNX, which brings an older orbax-checkpoint.
test-onnx: setup
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test,export]'
	$(BIN)/python -m pytest -q -m onnx

# With what is there: a machine with an accelerator may lack the extras, and a network to install them. Which kernels are
# fastest is not tried out: that takes time, and these tests ask what is computed.
test-gpu:
	XLA_FLAGS="$(XLA_FLAGS) --xla_gpu_autotune_level=0" JAX_PLATFORMS=$(GPU_PLATFORMS) \
	  $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m pytest -q -m gpu tests/test_gpu.py

# The site in build/site: all code of the pages and the notebooks is run, and stands there with what it printed.
docs: setup
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	$(BIN)/python docs/stage.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

# Links and names of the site, commands of the pages, examples, and the package in an empty environment.
test-docs: setup
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m docs

# PyTorch and timm, which the parity tests compare with. The torch that is already there is kept.
parity: setup
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'torch==2.13.0' transformers safetensors huggingface_hub pyyaml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps timm torchvision
	$(BIN)/python -m pytest -q -m parity

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Tests of the core, and of bfloat16, under the newest Python that is there, for which pip finds newer versions of JAX and
# Flax than for 3.11.
CORE := $(addprefix tests/test_,gates.py routing.py pytrees.py nnx.py penalties.py bfloat16.py)
newest:
	@for python in python3.14 python3.13 python3.12 $$(ls -d ~/.pyenv/versions/3.1[2-9]*/bin/python 2>/dev/null | sort -rV); do \
	if $$python -c '' 2>/dev/null; then \
	  $$python -m venv --clear build/newest && \
	  build/newest/bin/pip install --quiet --disable-pip-version-check . pytest beartype equinox hypothesis && \
	  build/newest/bin/pip list 2>/dev/null | grep -E '^(jax|flax|optax|orbax-checkpoint) ' && \
	  JAX_DISABLE_MOST_OPTIMIZATIONS=1 build/newest/bin/python -m pytest -q -p no:cacheprovider -m "$(MARKS)" $(CORE); exit $$?; \
	fi; done; echo "newest: found no Python after 3.11, so newer versions of JAX and Flax were not tried"

clean:
	rm -rf .venv
