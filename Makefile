# Every step here needs a Linux machine with Python 3.11 to 3.13 and the package index; nothing else.
PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= serve,export,dev
RUN := $(VENV)/bin/python -m

.PHONY: train test setup install install-server lint format serve benchmarks clean

train: setup  ## IMDB on the built-in reviews, from nothing to a tested model
	$(RUN) bert_mtl.train task=imdb

test: setup  ## the whole suite
	$(RUN) pytest

setup: $(VENV)/.ready  ## virtual environment, pinned dependencies, pretrained weights, built-in data

$(VENV)/.ready: pyproject.toml constraints.txt
	$(MAKE) install
	$(RUN) data_prep.build task=imdb
	touch $@

install:  ## the package with EXTRAS (of cuda, serve, export, dev), pinned
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"

install-server:  ## the server alone, without TensorFlow, in an environment of its own
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet --disable-pip-version-check -c constraints.txt $$($(VENV)/bin/python -c \
	"import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['serve'])")
	$(RUN) pip install --quiet --disable-pip-version-check --no-deps .
	$(RUN) serving.server --help > /dev/null

lint: setup  ## style and types
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

format: setup  ## rewrites the code in the project's style
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

BUNDLE ?= bundles/sample
serve: setup $(BUNDLE)/manifest.json  ## a server for BUNDLE, and its page; without BUNDLE for a model of the built-in reviews
	$(RUN) serving.server bundle=$(BUNDLE)

bundles/sample/manifest.json: runs/sample/metrics.json
	$(RUN) bert_mtl.export run=runs/sample bundle=bundles/sample "formats=[litert,openvino]" precision=int8

runs/sample/metrics.json: | setup
	$(RUN) bert_mtl.train task=imdb run.dir=runs/sample

benchmarks: setup  ## every claim of the README, measured
	$(RUN) benchmarks.tokenizer
	$(RUN) benchmarks.inputs
	$(RUN) benchmarks.build_memory

clean:  ## everything that can be made again
	rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache *.egg-info
