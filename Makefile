# make bench · make test · make demo · make lint · make help — each makes .venv when it is missing.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
TORCH  ?= torch==2.13.0
ARGS   ?=

SOURCES := $(shell find csrc presto_kernels presto_models -name '*.py' -o -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
CXX_FILES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: bench test demo lint format help clean
.DEFAULT_GOAL := help

help:            ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

bench: $(VENV)/.installed  ## what every step of a 32-second generation costs here: PyTorch, torch.compile, presto (ARGS=...)
	$(BIN)/python -m bench latency --cold-runs 1 --seconds 60 $(ARGS)

# Two workers of one thread each: threads of two workers would wait for each other, and the suite takes four times as long.
test: $(VENV)/.installed   ## the whole test suite (ARGS=... go to pytest)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

demo: $(VENV)/.models      ## 32 seconds of music from a prompt, with the checkpoint in the repository (ARGS=... go to generate)
	$(BIN)/python -m presto_models generate --prompt "slow church organ chorale" --seconds 32 --seed 1 --stereo \
		--out demo.wav --plot demo.png $(ARGS)

lint: $(VENV)/.lint        ## ruff, mypy on the public API, clang-format check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy presto_kernels presto_models
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

format: $(VENV)/.lint      ## rewrite the files as `make lint` wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

clean:           ## remove what was built
	rm -rf build dist *.egg-info $(VENV) presto_kernels/_C*.so

# torch first: plain `pip install .` of a package that needs it would take the newest.  The package is installed in place, so
# that the tests and the bench see the checkout; its extension is built anew when a source changes.
$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools wheel
	$(BIN)/python -m pip install --quiet $(TORCH)
	@touch $@

$(VENV)/.installed: $(VENV)/.torch $(SOURCES) setup.py pyproject.toml
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[test]'
	$(BIN)/python -m pip install --quiet --no-deps tinysoundfont musicnn stable-audio-tools==0.0.19
	@touch $@

$(VENV)/.models: $(VENV)/.torch $(SOURCES) setup.py pyproject.toml
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[models]'
	@touch $@

$(VENV)/.lint: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[lint]'
	@touch $@
