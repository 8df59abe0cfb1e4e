# Longhand: `make serve` and `make test` do all their own set-up.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do command -v $$p && break; done)
BIN := .venv/bin
LOCKS := $(wildcard deploy/environment/locks/*.txt)
PAGE_TOOLS := tests/e2e/page
CORPUS ?=
MINUTES ?= 3
PROCESSES ?= 2
ORDER ?=

.DEFAULT_GOAL := help
.PHONY: help setup serve test test-browser many-models launcher-kills client-kills beside evicting soak fuzz fresh fuzz-api test-clients stack check check-page docs lock clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

setup: .venv/.ready .venv/.kernel ## the environment and the native code, as `make serve` makes them; after each upgrade

# A file's name with spaces is one file; anything else is a list. exec: a signal to make's child reaches the launcher.
serve: .venv/.ready .venv/.kernel ## serve on HOST:PORT, and train a first model meanwhile if there is none (CORPUS="a.txt b.txt", MINUTES=3)
	@if [ -f "$(CORPUS)" ]; then set -- --corpus "$(CORPUS)"; elif [ -n "$(CORPUS)" ]; then set -- --corpus $(CORPUS); else set --; fi; \
	exec $(BIN)/python -m service "$$@" --minutes $(MINUTES)

test: .venv/.ready-test .venv/.kernel .venv/.prometheus ## every test, in two processes (PROCESSES=2), in the order of the files or not (ORDER=random)
	$(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile $(if $(filter random,$(ORDER)),-p randomly)

test-browser: .venv/.ready-test .venv/.kernel ## the page in a real headless Chromium: CHROMIUM=path, or Debian's is installed (as root)
	@$(PYTHON) -m deploy.environment --browser || echo "browser its packages could not be installed"
	@$(BIN)/python -m tests.e2e.page.browser
	$(BIN)/python -m pytest tests/e2e/page

launcher-kills: .venv/.ready-test .venv/.kernel ## kill -9 of the launcher 20 times in its first 10 seconds: the next start works each time
	LAUNCHER_KILLS=20 $(BIN)/python -m pytest -q -s tests/integration/test_launcher_kills.py

client-kills: .venv/.ready-test .venv/.kernel ## 100 streams of the client through 20 kill -9 of workers: exact texts
	CLIENT_STREAMS=100 CLIENT_KILLS=20 $(BIN)/python -m pytest -q -s tests/longhand/test_lost_streams.py -k kills

beside: .venv/.ready-test .venv/.kernel ## two trainings at once, and one beside a busy service, for MINUTES (1) each: shares, and that they end in time
	BESIDE_MINUTES=$(if $(filter command line,$(origin MINUTES)),$(MINUTES),1) $(BIN)/python -m pytest -q -s -n0 tests/model/training/test_beside_another.py

many-models: .venv/.ready-test .venv/.kernel ## texts of 50 models that are loaded and evicted at random: each as its model writes it alone
	MODELS=50 MODEL_TEXTS=20 $(BIN)/python -m pytest -q tests/service/models/test_swapped_models.py

emulated-gpu: .venv/.ready-test .venv/.kernel ## the GPU's kernels on the CPU, every access checked: 100,000 characters in random batches
	EMULATED_CHARS=100000 $(BIN)/python -m pytest -q tests/model/stepper/test_cuda.py -k random_batches

fuzz: .venv/.ready-test .venv/.kernel ## 10,000 damaged records of each kind that is read back; sessions with the native code under AddressSanitizer, too
	FUZZ=10000 $(BIN)/python -m pytest -q tests/fuzz
	FUZZ=2000 $(BIN)/python -m pytest -q tests/model/native/test_sanitizers.py -k damaged

evicting: .venv/.ready-test .venv/.kernel ## 20,000 operations on a Redis of 64 MB that evicts: no 500, no wrong text, every 404 explained
	EVICTING_OPERATIONS=20000 $(BIN)/python -m pytest -q -s -n0 tests/integration/test_eviction.py

soak: .venv/.ready-test .venv/.kernel ## mixed load with retrains for MINUTES (30): memory, descriptors, threads do not grow; a control that leaks is caught
	SOAK_MINUTES=$(if $(filter command line,$(origin MINUTES)),$(MINUTES),30) $(BIN)/python -m pytest -q -s -n0 tests/integration/test_soak.py

fresh: ## the first commands of a newcomer in clean clones, with every supported Python found here (FRESH=system: one): minutes, gigabytes
	@FRESH_LINKS="$(FRESH_LINKS)" FRESH_CACHE="$(FRESH_CACHE)" $(PYTHON) -m tests.e2e.fresh $(FRESH)

test-clients: .venv/.ready-test .venv/.kernel .venv-clients/.ready ## programs that others wrote: langchain-openai, llm, lm-evaluation-harness
	$(BIN)/python -m pytest -q tests/clients

.venv-clients/.ready: tests/clients/requirements.txt | .venv/.ready-test
	@$(BIN)/python -m uv venv --quiet --clear .venv-clients
	@$(BIN)/python -m uv pip install --quiet --python .venv-clients/bin/python -r $<
	@touch $@

fuzz-api: .venv/.ready-test .venv/.kernel ## more than 10,000 requests that the description of the API allows or forbids
	FUZZ_EXAMPLES=250 $(BIN)/python -m pytest -q tests/integration/test_fuzz.py

stack: .venv/.ready-test ## docker compose up from a clean clone, on a container engine: build, scale, kill, tear down
	STACK=1 $(BIN)/python -m pytest -s tests/e2e/test_stack.py

check: .venv/.ready-test check-page ## lint, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_structure.py

check-page: ## lint the page's JavaScript and CSS with biome, where npm is installed
	@if ! command -v npm >/dev/null; then echo "page    not linted: npm is not installed"; \
	elif [ $(PAGE_TOOLS)/node_modules/.package-lock.json -nt $(PAGE_TOOLS)/package-lock.json ] || npm ci --silent --no-audit --no-fund --prefix $(PAGE_TOOLS); \
	then $(PAGE_TOOLS)/node_modules/.bin/biome ci --colors=off --error-on-warnings --config-path=$(PAGE_TOOLS)/biome.json service/page/*.js service/page/docs/*.js service/page/*.css model/export/page/*.js model/export/page/*.css; \
	else echo "page    not linted: npm could not install biome"; fi

docs: .venv/.ready ## generate the tables of docs/api.md and docs/settings.md from the code
	$(BIN)/python docs/generate.py

lock: .venv/.ready-test ## resolve requirements.txt and the tests' again, and write the locked versions (UPGRADE=1: the newest that fit)
	@$(BIN)/python -m deploy.environment.lock $(if $(UPGRADE),--upgrade)

clean: ## forget the environment; models and sessions in data/ stay
	rm -rf .venv .venv-clients

.venv/.ready: $(LOCKS)
	@$(PYTHON) -m deploy.environment
	@$(BIN)/python -m model.text.default_text || true
	@touch $@

# The native code is compiled here, once; a machine without a compiler gets one as a Python package.
.venv/.kernel: .venv/.ready $(wildcard model/native/src/*.[ch] model/native/src/kernels/*.[ch] model/native/src/kernels/*/*.h)
	@command -v cc gcc clang >/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check ziglang==0.17.1
	@$(BIN)/python -m model.native.build --optional
	@touch $@

.venv/.ready-test: .venv/.ready $(LOCKS)
	@$(PYTHON) -m deploy.environment --tests
	@touch $@

# Prometheus is on no Python index. Where there is apt, Debian's is unpacked, not installed; else its tests are skipped.
.venv/.prometheus: | .venv/.ready-test
	@cd .venv && (command -v promtool || { command -v apt-get && apt-get download -qq prometheus && dpkg-deb -x prometheus_*.deb prometheus && rm prometheus_*.deb; }) >/dev/null 2>&1 \
	  || echo "setup   no Prometheus here: the tests that need one are skipped"
	@touch $@
