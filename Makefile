# make quickstart   everything: environment, data, a small GPT, its loss curve and its samples
# make test         everything: environment, tests
# make setup        the environment alone, in .venv
#
# TORCH_INDEX names another index for torch alone. Without a GPU, PyTorch's CPU build is a tenth of
# the download:  make quickstart TORCH_INDEX=https://download.pytorch.org/whl/cpu
PYTHON ?= python3
TORCH_INDEX ?=
TEST_ARGS ?=
BIN = .venv/bin
TORCH = $(shell grep '^torch==' requirements.txt)

.PHONY: setup quickstart test lint clean

setup: .venv/installed

# torch first and alone: what comes later must not choose another build of it
.venv/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		$(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

quickstart: setup
	$(BIN)/python data/python_stdlib/prepare.py
	$(BIN)/python train.py config/quickstart.py
	$(BIN)/python sample.py --out_dir=out-quickstart --num_samples=2 --max_new_tokens=300 \
		--start="def " --temperature=0.7 --on_full=refill
	@echo
	@echo "The run is in out-quickstart: ckpt.pt, loss.png, metrics.jsonl, log.txt, config.json."
	@echo "Next:"
	@echo "  .venv/bin/python sample.py --out_dir=out-quickstart --interactive=True"
	@echo "  .venv/bin/python eval.py --out_dir=out-quickstart"
	@echo "  .venv/bin/python train.py config/quickstart.py --max_iters=3000 --lr_decay_iters=3000"
	@echo "  .venv/bin/python data/custom/prepare.py --input=YOUR.txt --name=mine --tokenizer=byte"
	@echo "  .venv/bin/python train.py config/quickstart.py --dataset=mine --out_dir=out-mine"

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(TEST_ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv
