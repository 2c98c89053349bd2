# make demo   set up and upscale the bundled photo
# make test   set up and run the tests, as many at a time as there are processors (one: .venv/bin/python -m pytest)
# make lint   ruff and mypy
# Another place for the environment: make test VENV=/path/to/venv. Another Python: make test PYTHON=python3.12.

VENV ?= .venv
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11 python3.10 python,$(if $(shell $(p) -c 'import sys, venv, ensurepip; print(int(sys.version_info >= (3, 10)))' 2>/dev/null | grep 1),$(p))))
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check install -c constraints.txt
PHOTO ?= $(firstword $(wildcard examples/photo.png examples/photo.jpg examples/photo.webp))
EXTRAS := [test,lint]
# a test that does not end says where it stands, and ends the run
LIMIT := --max-worker-restart 0 -o faulthandler_timeout=900 -o faulthandler_exit_on_timeout=true

.PHONY: demo test lint clean

demo: $(VENV)/.drct
	@$(VENV)/bin/python examples/demo.py "$(PHOTO)" demo

test: $(VENV)/.drct-test
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(LIMIT) $(PYTEST)

lint: $(VENV)/.drct-test
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .
	$(VENV)/bin/python -m mypy

# The package is installed in place, so only new requirements make an installation necessary.
$(VENV)/.drct: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing drct and what it needs into $(VENV) (the first time takes minutes) ..."
	$(PIP) -e .
	@touch $@

$(VENV)/.drct-test: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing drct and its tests into $(VENV) (the first time takes minutes) ..."
	$(PIP) -e ".$(EXTRAS)"
	@touch $@ $(VENV)/.drct

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "drct needs Python 3.10 or newer with the module venv (on Debian and Ubuntu: apt install python3-venv)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

clean:
	rm -rf demo build dist
