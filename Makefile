# Two commands on a fresh machine: make demo, make test. Each sets itself up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# make demo LOCKED=1 installs the very versions that the committed numbers were made with, instead of the newest that fit;
# LOCKED=cu12 and LOCKED=cu13 the versions for GPUs with CUDA 12 and 13.
# EXTRAS=[peft] installs these extras of pyproject.toml with the package.
LOCK := $(if $(LOCKED),--constraint requirements$(if $(filter cu%,$(LOCKED)),-$(LOCKED)).lock)

# Every editable installation makes setuptools warn of folders named like the package; a clone has none.
INSTALL = PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet $(LOCK)

# What trains nothing, starts few processes and is not marked slow.
FAST := -m 'not slow' $(addprefix tests/,methods/parts datasets/readers harness/evaluation harness/planning harness/pricing harness/statistics harness/comparison harness/report)

# The numeric rooms; make test-numbers runs them as a processor without AVX-512, one without AVX2 and two threads compute.
NUMERIC = $(BIN)/python -m pytest -q -n auto --dist loadfile -m 'not slow' $(addprefix tests/,methods harness/models harness/training harness/evaluation harness/experiment/test_whole_runs.py)

.PHONY: demo site leaderboard-inputs intake test test-slow test-numbers test-fast test-versions mutants lint docs format test-slurm clean
.DELETE_ON_ERROR:

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/installed: pyproject.toml | $(BIN)/python
	$(INSTALL) --editable '.$(EXTRAS)'
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(INSTALL) --editable '.[dev]'
	touch $@

demo: $(VENV)/installed
	SAM_PEFT_SETTINGS=none $(BIN)/python -m harness.run --methods decoder,lora,convlora,naslora --datasets kvasir,isic2017

site: $(VENV)/installed
	$(BIN)/sam-peft report --study leaderboard --results results --out build/report $(if $(DATA),--data $(DATA)) $(LINKS)

# Images and weights of the leaderboard from their public sources (results/analysis/leaderboard/inputs.md).
leaderboard-inputs: $(VENV)/installed
	$(INSTALL) --editable '.[onnx]'
	PYTHON=$(CURDIR)/$(BIN)/python results/analysis/leaderboard/inputs.sh build/leaderboard

# What a submitted row (docs/join.md) must pass, one replicate again included: make intake DIR=results/submissions/NAME.
intake: $(VENV)/installed
	$(BIN)/python results/analysis/leaderboard/intake.py '$(DIR)' --run '--data build/leaderboard --checkpoint build/leaderboard/mobile_sam.safetensors'

test: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(if $(FILE),$(FILE),-n auto --dist loadfile -m 'not slow')

test-slow: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile -m slow

test-numbers: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 $(NUMERIC)
	OMP_NUM_THREADS=1 ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2 $(NUMERIC)
	OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive $(NUMERIC)

test-fast: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile $(FAST)

# The lowest versions that pyproject names and the newest there are, each in a venv of its own: the fast tests under both.
test-versions: $(VENV)/installed
	$(BIN)/python -m pip install --quiet uv
	set -e; for versions in lowest-direct highest; do \
	    venv=build/versions/$$versions; \
	    $(BIN)/uv venv --quiet --clear --python $(BIN)/python $$venv; \
	    $(BIN)/uv pip install --quiet --python $$venv/bin/python --resolution $$versions --editable '.[test]'; \
	    OMP_NUM_THREADS=1 $$venv/bin/python -m pytest -q -n auto --dist loadfile $(FAST); \
	done

# In a clean clone: 60 drawn lines, each changed in turn while its tests run.
mutants: $(VENV)/installed-dev
	mkdir -p build
	OMP_NUM_THREADS=1 $(BIN)/python tests/drawn_lines.py build/mutants.csv

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/installed-docs: pyproject.toml | $(BIN)/python
	$(INSTALL) --group docs
	touch $@

# What the pages link to, by links, so that no page is copied; build/site/index.html opens offline.
docs: $(VENV)/installed-docs
	rm -rf build/pages build/site && mkdir -p build/pages
	ln -s $(addprefix $(CURDIR)/,README.md ARCHITECTURE.md CONTRIBUTING.md CHANGELOG.md LICENSE CITATION.cff docs datasets methods slurm results) build/pages/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --config-file docs/mkdocs.yml

test-slurm: $(VENV)/installed-dev
	PYTHON=$(CURDIR)/$(BIN)/python slurm/testcluster/test -q $(SLURM_TESTS)

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
