# Everything works on a fresh clone: targets that need the package build it first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NATIVE := $(shell find native -type f) CMakeLists.txt pyproject.toml

.PHONY: demo demo-eval test check unit native-test sanitize neon-test fuzz serve-check quality bench format clean

demo: $(VENV)/.installed ## Ask the embedded model a question.
	$(BIN)/headgate run "Which country is Oslo in?"

test: check unit native-test ## What continuous integration runs.

check: $(VENV)/.tested ## Format, lint, types.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'native/*.cpp' 'native/*.h' 'native/*.inl')

unit: $(VENV)/.tested ## Python tests, parity with transformers included.
	$(BIN)/python -m pytest -q

native-test: $(VENV)/.tested ## The C++ core on its own.
	scripts/native_tests.sh plain

sanitize: $(VENV)/.tested ## The C++ core under address, undefined-behaviour and thread sanitizers.
	scripts/native_tests.sh address,undefined
	scripts/native_tests.sh thread

neon-test: $(VENV)/.tested ## Kernels cross-compiled for arm64, under emulation if it is installed.
	scripts/native_tests.sh neon

fuzz: $(VENV)/.tested ## 10,000 fuzzed headers and manifests.
	HEADGATE_FUZZ_EXAMPLES=10000 $(BIN)/python -m pytest -q tests -k fuzz

demo-eval: $(VENV)/.installed ## The demo model's scores on the held-out set.
	$(BIN)/python demo/evaluate.py

serve-check: $(VENV)/.tested ## What is promised of the server: a line each, bar, reached or not; fifteen minutes.
	status=0; for check in constrained prefix "same_scores --limit=6" load "kill_snapshots 50" shared_reads; do \
		set -- $$check; $(BIN)/python benchmarks/serving/$$1.py $$2 || status=1; \
	done; scripts/api_fuzz.sh || status=1; exit $$status

quality: $(VENV)/.tested ## What lossy settings cost on the demo model.
	$(BIN)/python benchmarks/quality.py $(QUALITY)

bench: $(VENV)/.installed ## What is promised of its speed: figure, bar, reached or not.
	$(BIN)/python benchmarks/goals.py $(BENCH)

format: $(VENV)/.tested
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $$(git ls-files 'native/*.cpp' 'native/*.h' 'native/*.inl')

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# Editable, so that Python changes need no build; C++ changes build again.
$(VENV)/.installed: $(VENV)/bin/python $(NATIVE)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "scikit-build-core>=0.11" "nanobind>=2.9" ninja "cmake>=3.20"
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable .
	touch $@

# torch first and pinned: whatever asks for it later is content with the CPU build.
$(VENV)/.tested: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --group dev --group parity
	touch $@

clean:
	rm -rf $(VENV) build
