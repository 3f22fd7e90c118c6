# segkit: `make run` trains and measures, `make test` checks everything. See README.md.
# Settings go on the command line: make run DATASET_PATH=/data/dataset EPOCHS=250 RUN=hr_ref

# what is given on the command line is taken as it is typed, $ included; recipes read it from the environment, as the
# names of folders below, so that no shell reads anything into it
NAMES := $(foreach name,$(.VARIABLES),$(if $(findstring command,$(origin $(name))),$(name)))
NAMES := $(filter-out -*,$(NAMES))
$(foreach name,$(NAMES),$(eval override $(name) := $$(value $(name))))

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest
# bench-readme: the folder that holds delta, omnipose and sparse
DATA ?= ../shared/data
export VENV BIN LOWEST DATA $(NAMES)
READY := $(VENV)/.ready-$(if $(TORCH),$(TORCH),default)
TORCH_INDEX := $(if $(filter cpu,$(TORCH)),--index-url https://download.pytorch.org/whl/cpu,)
ROOM := $(if $(filter cpu,$(TORCH)),3,9)# GB on the disk while it is unpacked
SETTINGS := $(foreach name,$(filter-out TORCH PYTHON DATA VENV BIN LOWEST,$(NAMES)),$(name)="$$$(name)")
# an environment that make has made holds this file; any other folder is left alone, whatever VENV says
MADE := .made-by-segkit
REMOVE := remove() { for folder; do if test -e "$$folder/$(MADE)"; then rm -rf "$$folder"; \
  elif test -n "$$(ls -A "$$folder" 2>/dev/null)"; then \
  echo "$$folder is left as it is: make has not made it (no $(MADE) in it)"; return 1; fi; done; }; remove

.PHONY: help run segment test test-lowest docs lab notebooks bench bench-readme clean install lint pairs

help:
	@echo "make run      train, segment and measure, on the demo or on DATASET_PATH=... EPOCHS=... RUN=..."
	@echo "make segment  segment and measure without training: DATASET_PATH=... (MODEL=runs/...: with your own student)"
	@echo "make lab      the notebooks in JupyterLab"
	@echo "make docs     the documentation as a website: site/index.html"
	@echo "make test     every check; also: bench, bench-readme, notebooks, test-lowest, lint, clean (README.md)"

run segment: export SEGKIT_CALLER := $(or $(value PWD),$(CURDIR))# which relative paths mean
run: install
	@"$$BIN"/python -m segkit run $(SETTINGS)

segment: install
	@"$$BIN"/python -m segkit segment $(SETTINGS)

# where a CPU computes in bf16 by itself, the notebooks that train or use a student are compared in float32, too;
# make test PRECISION=bf16 (or float32): everything in that precision alone
TRAINED := $(addprefix notebooks/,03_training.ipynb 04_inference.ipynb 05_tracking.ipynb 06_growth.ipynb)
ifdef PRECISION
test: export SEGKIT_PRECISION := $(PRECISION)
endif
test: install lint
	"$$BIN"/python -m pytest -n 2 --dist loadfile tests
	"$$BIN"/python -m pytest --nbval notebooks
	test -n "$$SEGKIT_PRECISION" || ! "$$BIN"/python -m tests.cpu_has_bf16 \
	  || SEGKIT_PRECISION=float32 "$$BIN"/python -m pytest --nbval $(TRAINED)

# the same unit tests with the lowest versions of everything that pyproject.toml allows
test-lowest: install
	test -x "$$LOWEST"/bin/python || { $(PYTHON) -m venv "$$LOWEST" && touch "$$LOWEST"/$(MADE); }
	"$$BIN"/python -m tests.lowest > "$$LOWEST"/pins.txt
	"$$LOWEST"/bin/python -m pip install --quiet $(TORCH_INDEX) $$(grep ^torch "$$LOWEST"/pins.txt)
	"$$LOWEST"/bin/python -m pip install --quiet -r "$$LOWEST"/pins.txt
	"$$LOWEST"/bin/python -m pip install --quiet -e '.[test]'
	"$$LOWEST"/bin/python -m pytest -n 2 --dist loadfile tests --ignore=tests/test_browser.py

lint: install
	"$$BIN"/ruff check .
	"$$BIN"/mypy
	"$$BIN"/python -m tests.structure

# the website of the documentation, in site/; any warning is an error
docs: install
	"$$BIN"/python -c 'import material, mkdocs_jupyter, mkdocstrings_handlers.python' 2>/dev/null \
	  || "$$BIN"/python -m pip install --quiet -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 "$$BIN"/python -m mkdocs build --strict --quiet
	@echo "open site/index.html"

lab: install
	"$$BIN"/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root,) notebooks

# rebuild each .ipynb from its .py, keeping cell ids, and execute it on the fixture
notebooks: install
	"$$BIN"/python -m tests.build_notebooks

bench: install
	"$$BIN"/python benchmarks/speed.py $(SETTINGS)
	"$$BIN"/python benchmarks/convergence.py $(SETTINGS)

# every figure of docs/measurements.md, about two hours on 2 cores
bench-readme: install
	"$$BIN"/python benchmarks/readme.py "$$DATA"
	"$$BIN"/python benchmarks/inference.py MODEL=runs/readme_demo_20
	"$$BIN"/python benchmarks/neighbours.py EPOCHS=20 PLAIN_BATCHES=240
	"$$BIN"/python benchmarks/neighbours.py DATASET_PATH="$$DATA"/delta EPOCHS=15 PLAIN_BATCHES=500
	"$$BIN"/python benchmarks/neighbours.py DATASET_PATH="$$DATA"/omnipose EPOCHS=60 PLAIN_BATCHES=500

install: $(READY)

$(READY): pyproject.toml
	@"$$BIN"/python -m pip --version >/dev/null 2>&1 || { $(REMOVE) "$$VENV" \
	  || { echo "it has no Python with pip: install pip into it, or choose another VENV"; exit 1; }; \
	  mkdir -p "$$VENV" && touch "$$VENV"/$(MADE) && $(PYTHON) -m venv "$$VENV"; } \
	  || { $(REMOVE) "$$VENV"; echo "no environment could be made: sudo apt install python3-venv"; exit 1; }
	@"$$BIN"/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "segkit needs Python 3.11 or newer: make PYTHON=python3.12 ..."; $(REMOVE) "$$VENV"; exit 1; }
	@test -x "$$BIN"/jupyter || "$$BIN"/python -c 'import shutil, sys; free = shutil.disk_usage(".").free / 1e9; \
	  sys.exit(f"{free:.1f} GB are free on this disk, the installation needs $(ROOM): make room first" \
	           if free < $(ROOM) else None)'
	@echo "installing into $$VENV, once: some minutes, up to 7 GB (2 GB with TORCH=cpu)"
	"$$BIN"/python -m pip install --quiet --upgrade pip
	"$$BIN"/python -m pip install --quiet $(TORCH_INDEX) torch torchvision
	"$$BIN"/python -m pip install --quiet -e '.[test]'
	rm -f "$$VENV"/.ready-*
	touch "$$VENV"/$(notdir $@)

# leaves runs/, segkit.json and environments that make has not made alone
clean:
	@$(REMOVE) "$$VENV" || true
	@$(REMOVE) "$$LOWEST" || true
	rm -rf build site .cache *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis artefacts
	find . -name __pycache__ -type d -not -path './runs/*' -prune -exec rm -rf {} +
