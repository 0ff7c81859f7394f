# make demo   train on 5,000 real digits, sample a grid, draw attention maps
# make test   the default suite      make test-slow   the rest      make test-gpu   on a GPU
# make test-oldest   the default suite with the lowest versions that pyproject.toml allows
# make check  lint, format, types, and the documentation
# make docs   the documentation, as a site: site/index.html

PYTHON ?= python3
BIN := .venv/bin
# accelerate launch gives a process one thread of a CPU, unless told.
THREADS = $(shell $(PYTHON) -c "import os; print(os.cpu_count())")

# One more than cores, for tests wait for processes of their own; four are enough.
WORKERS = $(shell $(PYTHON) -c "import os; print(min(os.cpu_count() + 1, 4))")

.PHONY: setup demo test test-slow test-gpu test-oldest check docs

# --no-compile: Python compiles what it imports, when it does, and keeps that beside it; all of it
# at once takes longer. Where it is told to keep nothing, each process would compile torch again.
unexport PYTHONDONTWRITEBYTECODE

# azula asks for torchvision, which its samplers do without, and which fits one build of torch only.
BARE = azula

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[demo,log,page,eval,export,science,dev]'
	$(BIN)/pip install --quiet --no-compile --no-deps --constraint constraints.txt $(BARE)
	touch $@

# DEMO_TRAIN: further settings of the training, such as --steps 100.
# The first checkpoint is the weaker model that guides the last.
GUIDED = --scheduler euler_ancestral --guidance.kind auto --guidance.scale 2 \
	--guidance.model $$(ls -d runs/demo/checkpoints/step-* | head -n 1)

demo: setup
	rm -rf runs/demo
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --dynamo_backend no \
		--mixed_precision no --num_cpu_threads_per_process $(THREADS) \
		training/train.py --config training/configs/mnist.yaml --output_dir runs/demo $(DEMO_TRAIN)
	$(BIN)/python sampling/sample.py --model runs/demo/model --num_images 64 $(GUIDED) \
		--output_dir runs/demo/digits
	$(BIN)/python sampling/attention.py --model runs/demo/model $(GUIDED) --output_dir runs/demo/attention
	@echo "The digits: runs/demo/digits/grid.png"
	@echo "The attention maps: runs/demo/attention/attention.png"

test: setup
	$(BIN)/pytest --numprocesses $(WORKERS) --dist worksteal

test-slow: setup
	$(BIN)/pytest -m slow

test-gpu: setup
	$(BIN)/pytest -m gpu tests/test_gpu.py

# What is installed beside them is new, and has old releases warn of its own changes.
test-oldest: .venv-oldest/installed
	PYTHONWARNINGS="ignore:User provided device_type" .venv-oldest/bin/pytest \
		--numprocesses $(WORKERS) --dist worksteal \
		-W ignore::DeprecationWarning -W "ignore:User provided device_type of 'cuda':UserWarning"

.venv-oldest/installed: .venv/installed pyproject.toml
	$(PYTHON) -m venv --clear .venv-oldest
	$(BIN)/uv pip install --quiet --python .venv-oldest/bin/python --resolution lowest-direct \
		--editable '.[demo,log,page,eval,export,science,dev]'
	$(BIN)/uv pip install --quiet --python .venv-oldest/bin/python --no-deps $(BARE)
	touch $@

check: setup docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# A stamp of its own, so that `make demo` installs no more than it needs.
.venv/docs-installed: .venv/installed
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[docs]'
	touch $@

docs: .venv/docs-installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
