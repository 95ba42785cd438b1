PYTHON ?= python3
BIN := .venv/bin
SOURCES := pyproject.toml setup.py $(wildcard compress3g/kernels/*.[ch] compress3g/kernels/*/*.[ch])
# pip with --no-compile takes half of the time: byte code is made of what is imported, and kept.
export PYTHONDONTWRITEBYTECODE :=

demo: .venv/demo
	$(BIN)/compress3g nerf train scenes/orchard --hollow --compare --config pipelines/hollow_nerf/orchard.toml -o runs/demo --overwrite

test: .venv/test
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m "not slow"

lint: .venv/test
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/lint-imports

types: .venv/test
	$(BIN)/mypy

.venv/demo: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q --no-compile -e '.[nerf]' && touch $@

.venv/test: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q --no-compile -e '.[nerf,diffusion,retrieval,serve,export,ray,peft,dev]' && touch $@ .venv/demo

clean:
	rm -rf .venv runs build *.egg-info

.PHONY: demo test lint types clean
