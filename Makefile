# The daily verbs. `make lab` and `make test` need Python 3.10 to 3.13 and nothing else.
# Another Python than the first suitable one: make lab PYTHON=/path/to/python3.12

.DEFAULT_GOAL := help
SHELL := /bin/sh
BIN := .venv/bin
MODELS := smollm2-135m llama3-tokenizer

# Each step ends in a stamp inside .venv, so that a second call has nothing to do.
HAVE_LAB := .venv/.have-lab
HAVE_TEST := .venv/.have-test
HAVE_BENCH := benchmarks/.venv/.have-bench

# Threads that wait for each other shall sleep and not spin: on a machine with other
# work, small models are then five to ten times faster.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help
help: ## say what there is
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

.PHONY: lab
lab: $(HAVE_LAB) models ## set everything up and open the course in JupyterLab
	$(BIN)/minillama lab

.PHONY: test
test: lint models ## set everything up and run the whole suite, notebooks included
	MINILLAMA_REQUIRE_MODELS=1 $(BIN)/pytest --nbval tests notebooks

.PHONY: notebooks
notebooks: $(HAVE_TEST) models ## run every notebook afresh and compare every stored output
	MINILLAMA_PROGRESS=off $(BIN)/pytest --nbval notebooks

.PHONY: test-8b
test-8b: $(HAVE_TEST) ## a full-size 8B in random weights: 16 GB of disk, 24 GB of memory
	$(BIN)/pytest -m slow -k full_size -s tests/big

.PHONY: bench
bench: $(HAVE_BENCH) ## speed beside the peers, into docs/benchmarks.md; BENCH="--help" says more
	benchmarks/.venv/bin/python -m benchmarks $(BENCH)

.PHONY: test-speed
test-speed: $(HAVE_TEST) models ## no step back in speed: ratios, on a quiet machine
	$(BIN)/pytest -m slow -s tests/house/test_speed.py

.PHONY: lint
lint: $(HAVE_TEST) ## ruff, pyright, quotes, the rules of the notebooks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python tools/quotes.py --check
	$(BIN)/python tools/notebooks.py lint

.PHONY: format
format: $(HAVE_TEST) ## put code, imports and quoted cells in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python tools/quotes.py --write

.PHONY: report
report: $(HAVE_TEST) ## measure every notebook again and write docs/notebooks.md
	$(BIN)/python tools/notebooks.py report --measure

.PHONY: models
models: $(HAVE_LAB)
	$(BIN)/minillama pull $(MODELS)

.PHONY: clean
clean: ## remove .venv and all caches of this folder; pulled models stay
	rm -rf .venv benchmarks/.venv .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
	find . -name .ipynb_checkpoints -prune -exec rm -rf {} +

$(BIN)/python:
	@sh tools/make_venv.sh "$(PYTHON)"

$(HAVE_LAB): $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	@touch $@

$(HAVE_TEST): $(HAVE_LAB)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[test]"
	@touch $@

# The peers live apart: they are many, and llama.cpp is compiled for this processor,
# which takes CMake's wheel, a C++ compiler and some minutes.
$(HAVE_BENCH): $(BIN)/python pyproject.toml constraints.txt benchmarks/requirements.txt benchmarks/requirements-alone.txt
	$(BIN)/python -m venv benchmarks/.venv
	benchmarks/.venv/bin/python -m pip install --quiet -c constraints.txt -e . -r benchmarks/requirements.txt
	benchmarks/.venv/bin/python -m pip install --quiet --no-deps -r benchmarks/requirements-alone.txt
	benchmarks/.venv/bin/minillama pull $(MODELS)
	@touch $@
