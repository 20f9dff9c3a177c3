# Two commands are all a reader needs: `make book` and `make test`. Both make .venv first.

PY := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --no-input -qq
# Chapters and their tests must not run a reader's own IPython start-up files.
IPYTHONDIR := $(CURDIR)/_build/ipython
export IPYTHONDIR
export PIP_ROOT_USER_ACTION := ignore
export PYDEVD_DISABLE_FILE_VALIDATION := 1
# Chapters and tests start hundreds of processes, which import what one of them has compiled.
unexport PYTHONDONTWRITEBYTECODE

files = $(shell find $(1) -type f -not -path '*/__pycache__/*' -not -path '*.egg-info/*' -not -path '*/.*')
SITE := _config.yml _toc.yml CHANGELOG.md $(call files,book core)
TESTED := $(SITE) pyproject.toml Makefile README.md $(wildcard data/cifar10) $(call files,tests)

RUN := $(PY) tests/notebooks/run.py
KERNEL := _build/ipython/profile_default/ipython_kernel_config.json
# One thread each, as for the chapters: numbers do not depend on the cores.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n logical --dist loadfile --no-loadscope-reorder --durations 15

.PHONY: help install book chapter lint unit test check notebooks lab lock bench explainers gpu gpu-wheels clean

help:
	@echo "make book       install, run every chapter, build the site into _build/html"
	@echo "make chapter    run one chapter against its reference: make chapter NAME=theory/noise"
	@echo "make lint       style, types and spelling"
	@echo "make unit       a minute of unit tests, the quickest; or some: make unit TESTS=tests/influence_lab/theory"
	@echo "make test       install, then everything that the continuous integration runs"
	@echo "make notebooks  refresh the outputs that the chapters are tested against"
	@echo "make lab        open the chapters in JupyterLab"
	@echo "make bench      measure fidelity and speed beside other libraries; hours, resumable"
	@echo "make explainers judge attribution methods by quanda; an hour, or minutes with PROFILE=tiny"
	@echo "make gpu        test, measure and train on a machine with a card: make gpu PART=a; or DRY=1"
	@echo "make lock       resolve the dependencies again (needs uv)"
	@echo "make clean      remove everything that was built; .venv stays"

install: .venv/installed

.venv/installed: requirements.lock pyproject.toml
	@test -x $(PY) && $(PY) -m pip --version >/dev/null 2>&1 || { python=$$(.ci/python) && "$$python" -m venv .venv; }
	@echo "Installing the pinned packages into .venv (7 GB, minutes the first time)"
	@$(PIP) install --require-hashes -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(KERNEL): Makefile
	@mkdir -p $(@D)
	@echo '{"IPKernelApp": {"log_level": 40}, "HistoryManager": {"hist_file": ":memory:"}}' > $@

_build/stamps/book: .venv/installed $(KERNEL) $(SITE)
	$(RUN)
	@rm -rf _build/html
	OMP_NUM_THREADS=1 .venv/bin/jupyter-book build . --all -n -W --keep-going
	@mkdir -p $(@D) && touch $@

book: _build/stamps/book
	@echo "The book is ready. Open $(CURDIR)/_build/html/index.html"

chapter: .venv/installed $(KERNEL)
	@test -n "$(NAME)" || { echo "Name a chapter: make chapter NAME=theory/noise" >&2; exit 2; }
	$(RUN) --judge $(NAME)

_build/stamps/lint: .venv/installed $(TESTED)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/codespell
	@mkdir -p $(@D) && touch $@

lint: _build/stamps/lint

# nbval runs every chapter once; the book shows that run, and the tests of the site read the book. They
# are run also where a chapter's outputs differ from the reference.
_build/stamps/test: _build/stamps/lint $(KERNEL) $(TESTED)
	@$(PY) tests/site/browser.py
	$(RUN) --judge; judged=$$?; $(MAKE) --no-print-directory book && $(PYTEST) && exit $$judged
	@mkdir -p $(@D) && touch $@

test: _build/stamps/test

check: _build/stamps/lint $(KERNEL)
	$(RUN) --judge; judged=$$?; $(PYTEST) --ignore tests/site && exit $$judged

# Those that were quickest when last run, as many as fit into a minute with the start.
unit: .venv/installed
	$(PYTEST) $(if $(TESTS),$(TESTS),--within 30 --ignore tests/site)

notebooks: .venv/installed $(KERNEL)
	$(RUN)
	@$(PY) tests/notebooks/refresh.py

# Chapters open as notebooks at a double click, without a change to the reader's own settings.
lab: export JUPYTER_CONFIG_DIR := $(CURDIR)/_build/jupyter
lab: .venv/installed
	@mkdir -p $(JUPYTER_CONFIG_DIR)
	@.venv/bin/jupytext-config set-default-viewer
	.venv/bin/jupyter-lab book

lock:
	uv pip compile --quiet --universal --generate-hashes --all-extras \
	    --python-version 3.11 --no-header --no-annotate --output-file requirements.lock pyproject.toml

# Speed and fidelity, for a quiet machine. What is measured stays in _build/bench until it is removed,
# so that a stopped run goes on; the peers' own environment sees this one's packages. With
# `make bench SPEED=--speed` the peers keep the rank correlations that are recorded.
PEERS := $(patsubst benchmarks/peers/%.py,%,$(wildcard benchmarks/peers/*.py))
FIRST := logix_ai ours ours_joint ours_bf16
SLOW := logix_ai-64 kronfluence_ekfac traker_trak
LATER := $(filter-out $(FIRST) $(SLOW),$(PEERS)) $(SLOW)
PAIRS := $(patsubst benchmarks/pairs/%.py,_build/bench/pairs/%.json,$(wildcard benchmarks/pairs/*.py))
PROFILE ?= cpu
EXPLAINED := _build/bench/quanda/$(PROFILE)
EXPLAINERS := $(patsubst benchmarks/quanda/%.py,$(EXPLAINED)/%.json,$(wildcard benchmarks/quanda/*.py))
DUPLICATES := $(patsubst benchmarks/duplicates/%.py,_build/bench/duplicates/%.json,$(wildcard benchmarks/duplicates/*.py))
measured = $(patsubst %,_build/bench/%.json,$(1))

define environment
	@test -x $(@D)/bin/python || $(PY) -m venv $(@D)
	@$(PY) -c 'import site; print(*site.getsitepackages(), sep="\n")' \
	    > "$$($(@D)/bin/python -c 'import site; print(site.getsitepackages()[0])')/main.pth"
	@$(@D)/bin/python -m pip --disable-pip-version-check -qq install --no-deps \
	    --ignore-requires-python -r $<
	@touch $@
endef

_build/peers/installed: benchmarks/peers/requirements.txt .venv/installed
	$(environment)

_build/peers/quanda/installed: benchmarks/quanda/requirements.txt .venv/installed
	$(environment)

_build/peers/%/installed: benchmarks/duplicates/%.txt .venv/installed
	$(environment)

_build/bench/cost: THREADS := 2
_build/bench/fidelity: THREADS := 1
_build/bench/cost _build/bench/fidelity: .venv/installed
	OMP_NUM_THREADS=$(THREADS) PYTHONPATH=core .venv/bin/influence-lab reproduce $(@F) --profile cpu --out _build/$(@F).svg
	@mkdir -p $(@D) && touch $@

# The libraries that are slow get smaller batches; ours are measured beside every other one as well.
$(call measured,ours ours_joint ours_bf16): OPTIONS := --rounds 5
$(call measured,torch_func pydvl_harmonic traker_trak): OPTIONS := --batch 16
_build/bench/logix_ai-64.json: OPTIONS := --rank 64 --further 8
PEER = OMP_NUM_THREADS=2 PYTHONPATH=core _build/peers/bin/python -W ignore -m influence_lab.experiments.peers $< $@ $(OPTIONS) $(SPEED)
KEEP = @mkdir -p book/results/cpu/peers && cp $@ book/results/cpu/peers/

_build/bench/%-64.json: benchmarks/peers/%.py _build/peers/installed $(if $(SPEED),,_build/bench/fidelity)
	@mkdir -p $(@D)
	$(PEER)
	$(KEEP)

_build/bench/%.json: benchmarks/peers/%.py _build/peers/installed $(if $(SPEED),,_build/bench/fidelity)
	@mkdir -p $(@D)
	$(PEER)
	$(KEEP)

_build/bench/pairs/%.json: benchmarks/pairs/%.py _build/peers/installed
	@mkdir -p $(@D) book/results/cpu/pairs
	OMP_NUM_THREADS=1 PYTHONPATH=core _build/peers/bin/python -W ignore -m influence_lab.experiments.pairwise $< $@
	@cp $@ book/results/cpu/pairs/

# Explainers judged by quanda's metrics; PROFILE=tiny takes minutes. The classifiers are trained once.
$(EXPLAINED)/data: | .venv/installed
	OMP_NUM_THREADS=1 PYTHONPATH=core $(PY) -m influence_lab.experiments.explainers --profile $(PROFILE) --data $@

$(EXPLAINED)/%.json: benchmarks/quanda/%.py _build/peers/quanda/installed | $(EXPLAINED)/data
	@mkdir -p book/results/$(PROFILE)/quanda
	OMP_NUM_THREADS=1 PYTHONPATH=core _build/peers/quanda/bin/python -W ignore -m influence_lab.experiments.explainers $< $@ --data $(@D)/data
	@cp $@ book/results/$(PROFILE)/quanda/

explainers: $(EXPLAINERS)

# Planted duplicates: the libraries contradict one another in what they need, so that each has an
# environment of its own. A script's name begins with that of its environment.
_build/bench/duplicates/data: | .venv/installed
	OMP_NUM_THREADS=1 PYTHONPATH=core $(PY) -m influence_lab.experiments.duplicate_peers --data $@

DUPLICATE = OMP_NUM_THREADS=1 PYTHONPATH=core $(1)/bin/python -W ignore -m influence_lab.experiments.duplicate_peers $< $@ --data $(@D)/data
FOUND = @mkdir -p book/results/cpu/duplicates && cp $@ book/results/cpu/duplicates/

_build/bench/duplicates/ours.json: benchmarks/duplicates/ours.py | _build/bench/duplicates/data
	$(call DUPLICATE,.venv)
	$(FOUND)

.PRECIOUS: _build/peers/%/installed
.SECONDEXPANSION:
_build/bench/duplicates/%.json: benchmarks/duplicates/%.py _build/peers/$$(firstword $$(subst _, ,$$*))/installed | _build/bench/duplicates/data
	$(call DUPLICATE,_build/peers/$(firstword $(subst _, ,$*)))
	$(FOUND)

# In the order of what the book rests on, for a machine that is quiet for a while only.
bench: _build/bench/cost $(call measured,$(FIRST)) _build/bench/fidelity $(call measured,$(LATER)) $(PAIRS) $(EXPLAINERS) $(DUPLICATES)
	@echo "The benchmark's records are in book/results/cpu; make book shows them"

# A machine with a card needs nothing of ours but this tree: its own Python has PyTorch, and `make
# gpu-wheels`, run elsewhere, leaves what else is missing in _build/wheels, to be brought along.
# OUT is the folder of what is brought back, BUDGET are the seconds of a call.
CARD = PYTHONPATH=core $(if $(wildcard $(PY)),$(PY),python3) -m influence_lab.gpu

gpu:
	@test -n "$(PART)$(DRY)" || { echo "Name the parts: make gpu PART='a b'; or DRY=1" >&2; exit 2; }
	$(CARD) run $(or $(PART),a b c d e f g) $(if $(DRY),--dry) $(if $(OUT),--out "$(OUT)") $(if $(BUDGET),--budget $(BUDGET))

gpu-wheels:
	$(CARD) wheels

clean:
	rm -rf _build
