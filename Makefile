# Each target sets itself up in .venv on a machine with nothing but Python 3.10-3.13 and make.
#   make demo    upscale the bundled photo with the bundled model, write before and after into demo/
#   make test    all tests
#   make check   lint, format, types and layout rules; changes nothing
#   make fmt     format, and fix what ruff can fix
# PYTHON=/path/to/python chooses another interpreter; `rm -rf .venv` starts over.

PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11 python3.10,$(shell $(p) -c '$(SUPPORTED)' 2>/dev/null && echo $(p))))
SUPPORTED = import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))
RUN = .venv/bin/python

# small tensors: more than four threads only wait for each other
CORES := $(shell n=$$(getconf _NPROCESSORS_ONLN); [ $$n -lt 4 ] && echo $$n || echo 4)
OMP_NUM_THREADS ?= $(CORES)
export OMP_NUM_THREADS

.PHONY: demo test check fmt

demo: .venv/core.stamp
	$(RUN) tools/demo.py

# a process a core, each of one thread: on tensors of tests two threads take longer than one
test: .venv/dev.stamp
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(CORES) --dist loadfile

check: .venv/dev.stamp
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m basedpyright --pythonpath $(RUN)
	$(RUN) -m pytest -q tests/test_layout.py

fmt: .venv/dev.stamp
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

.venv/venv.stamp:
	@test -n "$(PYTHON)" || { echo "make: no Python 3.10-3.13 found; install one, or name it with PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c '$(SUPPORTED)' || { echo "make: $(PYTHON) is no Python 3.10-3.13; name one with PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { echo "make: $(PYTHON) cannot make .venv; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@touch $@

# a stamp is written last, so a set-up that was cut off is done again
.venv/core.stamp: .venv/venv.stamp pyproject.toml
	@echo "installing torch and the other dependencies into .venv, once; this takes minutes"
	$(RUN) -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

.venv/dev.stamp: .venv/venv.stamp pyproject.toml
	@echo "installing torch and the other dependencies, with those of the tests, into .venv, once; this takes minutes"
	$(RUN) -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch .venv/core.stamp $@
