# make quickstart   everything: environment, data, a small GPT, its loss curve and its samples
# make test         everything: environment, what tests need besides, tests
# make setup        the environment alone, in .venv
# make matrix       the tests of models, training and engine under other releases of torch, each in
#                   an environment of several GB:  make matrix TORCHES="2.10.0 2.15.0" PYTHON=python3.13
#
# TORCH_INDEX names another index for torch alone. Without a GPU, PyTorch's CPU build is a tenth of
# the download:  make quickstart TORCH_INDEX=https://download.pytorch.org/whl/cpu
PYTHON ?= python3
TORCH_INDEX ?=
TEST_ARGS ?=
BIN = .venv/bin
TORCH = $(shell grep '^torch==' requirements.txt)

.PHONY: setup quickstart test matrix lint clean

setup: .venv/installed

PIP = $(BIN)/python -m pip install --disable-pip-version-check

# torch first and alone: what comes later must not choose another build of it
.venv/installed: requirements.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" 2> /dev/null || { \
		echo "error: Python 3.10 to 3.13 is needed; $(PYTHON) --version says: $$($(PYTHON) --version 2>&1)"; \
		echo "Name one:  make $(or $(MAKECMDGOALS),setup) PYTHON=python3.12"; exit 1; }
	@echo "Installing PyTorch and what the programs need into .venv: 1.2 GB on the disk with"
	@echo "PyTorch's CPU build, several times as much with that for NVIDIA's GPUs, the default on Linux."
	$(PYTHON) -m venv .venv
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(PIP) -r requirements.txt
	touch $@

.venv/all: .venv/installed requirements-all.txt
	@echo "Installing what tests and projects need besides: some 0.9 GB"
	$(PIP) -r requirements-all.txt
	touch $@

quickstart: setup
	$(BIN)/python data/python_stdlib/prepare.py
	$(BIN)/python train.py config/quickstart.py
	$(BIN)/python sample.py --out_dir=out-quickstart --num_samples=2 --max_new_tokens=200 \
		--start="def read(self," --min_p=0.05 --repetition_penalty=1.1 --on_full=refill
	@echo
	@echo "The run is in out-quickstart: ckpt.pt, loss.png, metrics.jsonl, log.txt, config.json."
	@echo "Next:"
	@echo "  .venv/bin/python sample.py --out_dir=out-quickstart --interactive=True"
	@echo "  .venv/bin/python eval.py --out_dir=out-quickstart"
	@echo "  .venv/bin/python serve.py --out_dir=out-quickstart"
	@echo "  .venv/bin/python train.py config/quickstart.py --max_iters=4000"
	@echo "and with a text of your own:"
	@echo "  .venv/bin/python train_tokenizer.py --input=YOUR.txt --vocab_size=2048 --out=mine.json"
	@echo "  .venv/bin/python data/custom/prepare.py --input=YOUR.txt --name=mine --tokenizer=mine.json"
	@echo "  .venv/bin/python train.py config/quickstart.py --dataset=mine --out_dir=out-mine"

test: .venv/all
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(TEST_ARGS)

TORCHES ?= 2.10.0 2.11.0 2.15.0

matrix:
	tests/matrix.sh "$(PYTHON)" $(TORCHES)

lint: .venv/all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv
