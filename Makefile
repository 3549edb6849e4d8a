# Every command sets up what it needs (.venv, from pyproject.toml and constraints.txt) and can be run again.

PYTHON ?= python3
OUT    ?= out
# CPU-only machines: make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu avoids the CUDA build of torch
TORCH_INDEX ?=
LAB_FLAGS   ?=
# files of tests at a time
JOBS ?= 2

RUN   := HF_HUB_OFFLINE=1 .venv/bin/python
# the models of demo and tests are so small that a second thread gains nothing, and waits where the machine is busy
SMALL := OMP_NUM_THREADS=1 $(RUN)
READY := .venv/.ready
MADE  := $(addprefix $(OUT)/,01_unsample.ipynb unsample.zarr unsample.html strip.png results.json)
NBVAL := --nbval --nbval-current-env --nbval-sanitize-with tests/nbval.cfg

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lab lint refresh pictures clean

help: ## list these commands
	@echo "make <command>, one of:"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-13s%s\n", $$1, $$2 }'

demo: $(READY) ## a digit to noise and back: the run, its page and a table of errors, in out/
	@rm -rf $(foreach file,$(MADE),"$(file)")
	@mkdir -p "$(OUT)"
	$(SMALL) -m papermill notebooks/01_unsample.ipynb "$(OUT)/01_unsample.ipynb" -k python3 -r out_dir "$(OUT)"
	@$(RUN) scripts/results.py "$(OUT)"

test: $(READY) ## all tests: pytest, and every notebook against its stored outputs (minutes)
	$(SMALL) -m pytest notebooks tests $(NBVAL) -m "not slow" -n $(JOBS) --dist loadfile --no-loadscope-reorder

test-slow: $(READY) ## the tests that take longer than that
	$(SMALL) -m pytest tests -m slow || [ $$? -eq 5 ]  # 5: there are none

lab: $(READY) ## JupyterLab on the notebooks
	$(RUN) -m jupyterlab --LabApp.default_url=/lab/tree/notebooks/01_unsample.ipynb \
	  $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB_FLAGS)

lint: $(READY) ## ruff: rules and format, notebooks included
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .

refresh: $(READY) ## run the notebooks and store their outputs, README's tables and its picture
	$(SMALL) scripts/refresh.py

pictures: $(READY) ## take the pictures of the views that README shows (needs chromium)
	$(SMALL) scripts/pictures.py

clean: ## remove what the commands left, but not .venv
	rm -rf $(foreach file,$(MADE),"$(file)") build .pytest_cache .ruff_cache .hypothesis
	@[ ! -d "$(OUT)" ] || rmdir "$(OUT)" 2>/dev/null || echo "$(OUT) holds other files, which stay"

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "This needs Python 3.11 or newer; " + \
	  sys.executable + " is " + sys.version.split()[0] + ". Try: make PYTHON=/path/to/python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(if $(TORCH_INDEX),.venv/bin/python -m pip install -c constraints.txt torch --index-url $(TORCH_INDEX))
	.venv/bin/python -m pip install -c constraints.txt -e '.[test]'
	@touch $@
