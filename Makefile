# make demo: train, measure, upscale, compare, on photographs that come with scikit-image.
# make test: the whole test suite, under TensorFlow and under JAX.
# make results DATA=FOLDER: what the presets reach on Set5, Set14 and B100.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo test test-tensorflow test-jax test-beam lint results clean

demo: $(VENV)/ready
	$(RUN) tools/demo.py --output=demo

test: lint test-tensorflow test-jax

lint: $(VENV)/ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# The second environment too: models must cross from one backend to the other.
test-tensorflow: $(VENV)/ready $(VENV)-jax/ready
	$(RUN) -m pytest

test-jax: $(VENV)-jax/ready
	KERAS_BACKEND=jax $(VENV)-jax/bin/python -m pytest $(CORE_TESTS)

# What a machine without TensorFlow must be able to do.
CORE_TESTS := $(addprefix tests/test_, image.py metrics.py layers.py losses.py soap.py model.py data.py \
	inference.py evaluate.py upscale.py callbacks.py checkpoint.py files.py train.py presets.py distributed_model.py process.py \
	lr_files.py patch_weights.py measuring.py precision.py refit.py average.py sizes.py validation.py records.py card.py run_folder.py safekeeping.py \
	thinning.py widening.py teaching.py settings.py graphs.py netpbm.py tiff.py image_metadata.py jobs.py transparency.py animation.py commands.py)

$(VENV)/ready: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --upgrade pip
	$(VENV)/bin/pip install --quiet --editable '.[dev]'
	touch $@

$(VENV)-jax/ready: setup.cfg requirements-jax.txt
	$(PYTHON) -m venv $(VENV)-jax
	$(VENV)-jax/bin/pip install --quiet --upgrade pip
	$(VENV)-jax/bin/pip install --quiet --requirement requirements-jax.txt pytest
	$(VENV)-jax/bin/pip install --quiet --no-deps --editable .
	touch $@

# The presets' numbers, studies and report, from a folder with the field's test sets.
PRESETS := mobile-x2,mobile-x3,mobile-x4,drcn-x2,drcn-x3,drcn-x4,drcn-x234,drcn-large-x234
SETS = $(DATA)/Set5,$(DATA)/Set14,$(DATA)/B100

results: $(VENV)/ready
	@test -n "$(DATA)" || { echo "make results DATA=FOLDER: a folder that holds Set5, Set14 and B100"; exit 1; }
	$(VENV)/bin/drcn-evaluate --model=$(PRESETS) --data_dir=$(SETS) --json=results/plain.json --overwrite
	$(VENV)/bin/drcn-evaluate --model=$(PRESETS) --data_dir=$(DATA)/Set5,$(DATA)/Set14 --self_ensemble \
		--json=results/self_ensemble.json --overwrite
	$(VENV)/bin/drcn-study ensemble --model=$(PRESETS) --data_dir=$(DATA)/Set5,$(DATA)/Set14 --output=results/studies
	$(VENV)/bin/drcn-study weights --model=$(PRESETS) --output=results/studies
	$(VENV)/bin/drcn-report --model=$(PRESETS) --data_dir=$(SETS) --studies=results/studies --output=results/report

# Apart from the others: Apache Beam wants an older protobuf and Pillow.
test-beam: $(VENV)-beam/ready
	$(VENV)-beam/bin/python -m pytest tests/test_batch.py tests/test_beam.py

$(VENV)-beam/ready: setup.cfg
	$(PYTHON) -m venv $(VENV)-beam
	$(VENV)-beam/bin/pip install --quiet --upgrade pip
	$(VENV)-beam/bin/pip install --quiet --editable '.[beam]' pytest
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-jax $(VENV)-beam demo results
