# make demo: the main job, from nothing to report.html. make test: the tests. Needs Python >= 3.11.
PYTHON ?= python3
BIN := .venv/bin
# One thread a process: the tests run in two processes, and threads that wait for cores are slow.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: demo test test-all lint tutorials bench bench-quick clean

demo: .venv/installed
	$(BIN)/pplvm compare factor-analysis --report report.html

test: .venv/installed
	$(TEST) -m "not slow"

test-all: .venv/installed
	$(TEST)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

tutorials: .venv/installed-tutorials
	mkdir -p tutorials/rendered
	for file in tutorials/[0-9]*.py; do \
		$(BIN)/jupytext --quiet --to ipynb --output tutorials/rendered/$$(basename $$file .py).ipynb $$file && \
		$(BIN)/jupyter nbconvert --log-level WARN --execute --to html tutorials/rendered/$$(basename $$file .py).ipynb \
			|| exit 1; done

bench: .venv/installed-bench
	for file in check_peers svi nuts chains start memory hmm growth em jsb discrete vae topics; do \
		$(BIN)/python benchmarks/$$file.py || exit 1; done

bench-quick: .venv/installed-bench
	for file in svi nuts chains memory hmm; do \
		$(BIN)/python benchmarks/$$file.py --quick || exit 1; done

.venv/installed: setup.cfg constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("pplvm needs Python >= 3.11, got " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

.venv/installed-tutorials: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[tutorials]"
	touch $@

.venv/installed-bench: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[bench]"
	touch $@

clean:
	rm -rf .venv build report.html tutorials/rendered benchmarks/results
