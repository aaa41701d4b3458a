# One virtual environment per Python version: make test PYTHON=python3.12 uses .venv-3.12. `.venv` is the first one made.
PYTHON ?= python3
VENV := .venv-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
RUN := $(VENV)/bin/python

.PHONY: demo test versions

# Train a small model on synthetic heads; reconstruct and animate unseen ones: log/demo-64.
# One thread for the networks, which are too small to gain from a second, and one process that draws heads.
demo: $(VENV)/installed
	OMP_NUM_THREADS=1 $(RUN) run.py --mode demo

test: $(VENV)/installed
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(RUN) -m pytest -q -n 2 --dist loadfile tests

# Installed versions of the required packages.
versions: $(VENV)/installed
	@$(RUN) --version
	@$(RUN) -m pip freeze -r requirements.txt | sed '/^## /,$$d; /^#/d'

$(VENV)/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	test -e .venv || ln -sfn $(VENV) .venv
	touch $@
