# All commands of this project, for people and CI; `make` lists them.
# The Python of the environment; by default the first of python3.11 to python3.14 that works.
PYTHON ?=
VENV ?= .venv
PORT ?= 50051
# Test files run in this many processes; each may start a stack of its own (about 4 GiB).
WORKERS ?= 3
XDIST := -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# PyTorch's index of CPU builds, asked only where the ordinary index has no such build.
TORCH_INDEX_URL ?= https://download.pytorch.org/whl/cpu
PY := $(VENV)/bin/python
SETUP := $(VENV)/.ready
# Where there is an NVIDIA card, an environment with the CUDA build of PyTorch.
CUDA_VENV := $(if $(wildcard /dev/nvidia0),$(VENV)-cuda,$(VENV))

.DEFAULT_GOAL := help
.PHONY: help setup up down demo test test-hostile test-architectures chaos bench bench-vision bench-scenes profile-vision bench-text bench-servers bench-embeddings bench-perplexity bench-link bench-door bench-cpu bench-files bench-autoload bench-fairness bench-connections bench-loads bench-scale bench-memory bench-model-memory page-picture rust lint format proto models lock docs figures clean images test-containers kubernetes test-kubernetes sbom audit pin-images test-cuda bench-cuda

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-19s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(SETUP) ## make the environment in .venv

$(SETUP): tools/setup.sh requirements/dev.txt requirements/torch.txt pyproject.toml $(wildcard protos/ml/*.proto protos/ml/*/*.proto)
	@PYTHON="$(PYTHON)" TORCH_INDEX_URL="$(TORCH_INDEX_URL)" tools/setup.sh "$(VENV)"
	@touch $@

up: models ## run the services, Envoy and a file provider until Ctrl-C
	@$(PY) -m cli up --port $(PORT) $(UP)

down: setup ## stop what `make up` started
	@$(PY) -m cli down

demo: models ## load models, embed, chat and run every vision task through Envoy
	@$(PY) -m demo --port $(PORT) $(DEMO)

test: models ## run all tests that need no container engine
	@$(PY) -m pytest --ignore tests/containers --ignore tests/kubernetes $(XDIST) $(TESTS)

test-hostile: models ## attack the services, and print what it did to them and to others
	@rm -f out/hostile.json
	@$(PY) -m pytest tests/hostile $(XDIST)

chaos: models ## cause faults under steady calls for MINUTES=10, in the order of SEED=1 (SEED="1 2": two runs)
	@$(PY) -m tests.chaos --seed $(or $(SEED),1) --minutes $(or $(MINUTES),10)

test-architectures: setup ## compare every architecture with transformers, and print the table
	@$(PY) -m tests.architectures $(ARCHITECTURES)

$(VENV)-cuda/.ready: $(SETUP) requirements/torch-cuda.txt
	@PYTHON="$(PYTHON)" TORCH_INDEX_URL="$(TORCH_INDEX_URL)" tools/setup.sh "$(VENV)-cuda"
	@$(VENV)-cuda/bin/python -m pip --disable-pip-version-check install -q --no-deps --require-hashes -r requirements/torch-cuda.txt
	@touch $@

test-cuda: models $(CUDA_VENV)/.ready ## test on a CUDA device; skipped, with the reason, without one
	@CUDA_TESTS=$(or $(CUDA_TESTS),$(if $(wildcard /dev/nvidia0),required)) $(CUDA_VENV)/bin/python -m pytest tests/cuda

bench-cuda: models $(CUDA_VENV)/.ready ## time generation on a CUDA device against transformers and vLLM
	@$(CUDA_VENV)/bin/python -m tests.bench.bench_cuda $(BENCH)

images: ## build the container images, one at a time
	@set -e; for name in envoy model_mgmt text vision http models provider; do \
	  echo "building the image of $$name"; docker compose --profile demo build -q $$name; done

test-containers: models ## test the images and the compose files; needs a container engine
	@$(PY) -m pytest tests/containers --timeout 1200

kubernetes: setup ## write what the manifests of deploy/kubernetes take from the rest of the project
	@$(PY) -m tools.kubernetes

test-kubernetes: setup ## test deploy/kubernetes; skipped, with the reason, without ../shared/kubernetes
	@timeout 600 $(PY) -m pytest tests/kubernetes

sbom: setup ## write bills of materials of the images and of .venv into out/sbom/ (CycloneDX)
	@$(PY) -m tools.containers.sbom

audit: setup ## look up known vulnerabilities of all pinned packages
	@$(PY) -m tools.audit $(AUDIT)

pin-images: setup ## pin the base images by digest; asks their registries
	@$(PY) -m tools.containers.pin_images

bench: bench-text bench-embeddings bench-vision bench-servers bench-cpu bench-link bench-door bench-files bench-scenes bench-perplexity bench-model-memory ## run all benchmarks

bench-vision: models ## time every vision task against MediaPipe in process
	@$(PY) -m tests.bench.bench_vision $(BENCH)

bench-memory: models ## see what vision_svc holds after 3,000 streams of each task (hours)
	@$(PY) -m tests.bench.vision_memory $(BENCH)

bench-model-memory: models ## compare what models are said to hold with what their processes hold
	@$(PY) -m tests.bench.model_memory $(BENCH)

bench-scenes: models ## time holistic against its parts, templates, auto flip and media sequences
	@$(PY) -m tests.bench.bench_scenes $(BENCH)

profile-vision: models ## show where the time of each vision task goes
	@$(PY) -m tests.bench.profile_vision $(BENCH)

bench-text: models ## time generation against the library in process
	@$(PY) -m tests.bench.bench_text $(BENCH)

bench-servers: models ## time generation against other servers and engines
	@$(PY) -m tests.bench.bench_servers $(BENCH)

bench-embeddings: models ## time embeddings against the libraries in process and infinity
	@$(PY) -m tests.bench.bench_embeddings $(BENCH)

bench-perplexity: models ## measure the perplexity of each dtype and of peers
	@$(PY) -m tests.bench.bench_perplexity $(BENCH)

bench-cpu: models ## CPU of a token and of an embedding call, by process
	@$(PY) -m tests.bench.bench_cpu $(BENCH)

bench-files: setup ## speed of GetModelFile beside a bare gRPC stream, and of loading 1 GB
	@$(PY) -m tests.bench.bench_files $(BENCH)

bench-scale: setup ## one model_mgmt_svc over 500 fake replicas and 50 models
	@$(PY) -m tests.bench.bench_scale $(BENCH)

bench-loads: models ## LoadModel of converted models, by the parts of a load
	@$(PY) -m tests.bench.bench_loads $(BENCH)

bench-connections: models ## up to 1,024 token streams, idle connections, and 200 video streams
	@$(PY) -m tests.bench.bench_connections $(BENCH)

bench-fairness: models ## first token and vector of one caller beside 8 and beside 500 calls of another
	@$(PY) -m tests.bench.bench_fairness $(BENCH)

bench-autoload: models ## loads a minute and p95 of callers over three models of which two fit
	@$(PY) -m tests.bench.bench_autoload $(BENCH)

bench-link: setup ## CPU of a token between text_svc and a model's process, beside gRPC
	@$(PY) -m tests.bench.bench_link $(BENCH)

bench-door: setup ## what http_svc costs over gRPC: time of a request, CPU of a token
	@$(PY) -m tests.bench.bench_door $(BENCH)

page-picture: setup ## draw docs/page.webp with Chromium, from the stack that is running
	@$(PY) -m tools.page_picture --port $(PORT)

rust: ## build, lint and test the Rust client
	@python3 -m tools.cargo fmt --all --check
	@python3 -m tools.cargo --lint build -q --workspace --all-targets
	@python3 -m tools.cargo --lint test -q --workspace

lint: setup ## check formatting, lint, types, the layers of the code and protos
	@$(PY) -m ruff format --check -q .
	@$(PY) -m ruff check -q .
	@$(PY) -m mypy
	@said=$$($(VENV)/bin/lint-imports --no-logo --no-cache 2>&1) || { echo "$$said"; exit 1; }
	@$(VENV)/bin/buf lint
	@$(PY) -m tools.docs --check

format: setup ## format the code
	@$(PY) -m ruff format -q .
	@$(PY) -m ruff check -q --fix .

proto: setup ## generate the code of protos/ into ml/
	@$(PY) tools/build_protos.py

models: setup ## fetch the models and pictures into models/
	@$(PY) -m tools.models fetch

lock: setup ## pin all dependencies again, in requirements/ (LOCK=--keep: only what changed)
	@$(PY) tools/lock.py $(LOCK)

docs: setup ## write the tables of the documents that come from the code
	@$(PY) -m tools.docs

figures: setup ## take the tables of benchmarks and attacks into the documents
	@$(PY) -m tools.docs --figures

clean: ## remove the environment, the models and all output
	rm -rf $(VENV) ml models out run build dist clients/rust/target .mypy_cache .ruff_cache .pytest_cache
