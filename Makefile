PYTHON ?= python3
RUN := .venv/bin/python

.PHONY: demo test

# Train a small model on the embedded heads, rebuild unseen ones, animate one by another: log/demo-64.
# One thread for the networks, which are too small to gain from a second, and one process that draws heads.
demo: .venv/installed
	OMP_NUM_THREADS=1 $(RUN) run.py --mode demo

test: .venv/installed
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(RUN) -m pytest -q -n 2 --dist loadfile tests

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@
