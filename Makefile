# Two commands do everything on a fresh Debian or Ubuntu with Python 3.11+, make and git:
#   make demo    make test

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin

# Debian packages that the tests start servers of; installed only where their programs are missing.
SERVERS := rabbitmq-server prometheus postgresql amqp-tools openssl faketime

.PHONY: reliability rabbitmq4 demo test checks unit suites servers benchmarks dashboards clean help

help:
	@echo "make demo        install into $(VENV) and train on four real hospitals"
	@echo "make test        every check and test; installs the servers they need from Debian when missing"
	@echo "make rabbitmq4   the transport contract and the compose topology on RabbitMQ 4.x too (root)"
	@echo "make reliability the tables of docs/reliability.md: 20,000 simulated runs, real kills, failover, a soak (two hours)"
	@echo "make benchmarks  the figures of docs/performance.md"
	@echo "make dashboards  write the Grafana dashboard anew"
	@echo "make clean       remove $(VENV) and what tools left behind"

demo: $(VENV)/installed
	$(RUN)/fedmq demo

test: checks unit suites

# --- the environment ---------------------------------------------------------------------------

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "fedmq needs Python 3.11 or newer; name one with PYTHON=python3.12"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); scripts/install_debian.sh python3-venv && $(PYTHON) -m venv $(VENV); }

$(VENV)/installed: $(VENV)/bin/python pyproject.toml
	$(RUN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/developed: $(VENV)/bin/python pyproject.toml
	$(RUN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ $(VENV)/installed

servers:
	@scripts/install_debian.sh $(SERVERS)

# --- checks and tests --------------------------------------------------------------------------

checks: $(VENV)/developed
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	$(RUN)/mypy
	$(RUN)/lint-imports
	$(RUN)/python scripts/fault_table.py --check

# The pure core reaches every branch by its own unit tests: the report fails below 100 %.
unit: $(VENV)/developed servers
	FEDMQ_REQUIRE_SERVERS=1 $(RUN)/coverage run -m pytest -q tests/unit
	$(RUN)/coverage report

suites: $(VENV)/developed servers
	FEDMQ_REQUIRE_SERVERS=1 $(RUN)/python -m pytest -q tests --ignore=tests/unit

# RabbitMQ 4.x beside Debian's 3.10, in a folder of its own (400 MB; root): the contract, and the compose topology.
RABBITMQ4 ?= /var/tmp/fedmq-rabbitmq4
rabbitmq4: $(VENV)/developed servers
	@scripts/install_debian.sh debootstrap
	test -d $(RABBITMQ4)/usr/lib/rabbitmq || tests/servers/get_rabbitmq4.sh $(RABBITMQ4)
	FEDMQ_REQUIRE_SERVERS=1 FEDMQ_RABBITMQ4_ROOT=$(RABBITMQ4) $(RUN)/python -m pytest -q tests/contract/test_transport.py tests/acceptance/test_compose.py

# --- the rest ----------------------------------------------------------------------------------

benchmarks: $(VENV)/developed servers
	$(RUN)/python benchmarks/round_time.py
	$(RUN)/python benchmarks/stragglers.py
	$(RUN)/python benchmarks/heart_disease.py
	$(RUN)/python benchmarks/safeguard.py
	$(RUN)/python benchmarks/parquet.py
	$(RUN)/python benchmarks/wide.py
	$(RUN)/python benchmarks/simulation.py

reliability: $(VENV)/developed servers
	$(RUN)/fedmq chaos --seeds 0-19999
	$(RUN)/python benchmarks/kills.py --kills 200
	$(RUN)/python benchmarks/failover.py --rounds 10
	$(RUN)/python benchmarks/membership.py
	$(RUN)/python benchmarks/reconnect.py
	$(RUN)/python benchmarks/soak.py

dashboards: $(VENV)/developed
	$(RUN)/python -m monitoring.dashboards

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage fedmq-demo
	find . -name __pycache__ -prune -exec rm -rf {} +
