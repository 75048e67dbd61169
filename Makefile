# Every target needs only Python >= 3.11 on the machine; `env` builds the rest into .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: env demo test test-fast test-cluster scan lint format bench lock clean

env: $(STAMP)

# uv where it is installed (seconds), else pip; both read the same lock file.
$(STAMP): requirements.lock pyproject.toml
	@if command -v uv >/dev/null 2>&1; then \
		uv venv --quiet --allow-existing --python $(PYTHON) $(VENV) && \
		VIRTUAL_ENV=$(VENV) uv pip install --compile-bytecode -r requirements.lock && \
		VIRTUAL_ENV=$(VENV) uv pip install --no-deps -e .; \
	else \
		$(PYTHON) -m venv $(VENV) && \
		$(BIN)/python -m pip install -r requirements.lock && \
		$(BIN)/python -m pip install --no-deps -e .; \
	fi
	@touch $@

# The whole chain on this machine: S3 server, MLflow, Ray, two pretrained teachers, real images. QUICK=1 is the short form.
demo: env
	$(BIN)/unic demo $(if $(QUICK),--quick)

test: lint
	$(BIN)/python -m pytest

test-fast: env
	$(BIN)/python -m pytest -m "not slow"

# Needs a kubeconfig that leads to a cluster with the images unic:0.1.0 and unic-dev:0.1.0; skips where there is none.
TESTS ?= tests/k8s
test-cluster: env
	$(BIN)/python -m pytest -m cluster -rs $(TESTS)

# Insecure settings in manifests and Dockerfile.
scan: env
	$(BIN)/python -m k8s.scan

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

BENCH ?= ladder teachers checkpoint loader recovery tracking logreg knn features dense evaluation

bench: env
	@for name in $(BENCH); do $(BIN)/python -m benchmarks.$$name || exit 1; done

# Refresh the pins. No index address is written: any mirror of the Python package index serves them.
# The image's pins are a part of the first, without what only kfp's client and compiler need.
COMPILE := uv pip compile --universal --python-version 3.11 --no-emit-index-url --no-header --generate-hashes

lock:
	$(COMPILE) --extra demo --extra onnx --group dev --group bench pyproject.toml -o requirements.lock
	$(COMPILE) --override docker/overrides.txt -c requirements.lock pyproject.toml -o docker/requirements.lock
	$(COMPILE) --no-deps -c requirements.lock docker/demo.in -o docker/demo.lock

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache dist
