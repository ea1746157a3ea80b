# `make` alone lists the targets. Everything runs from .venv, which `make setup` makes and each target makes if needed.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.ONESHELL:
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
# Byte code is worth keeping here, whatever the shell says.
unexport PYTHONDONTWRITEBYTECODE
# Debian keeps some programs where an ordinary user's PATH does not look.
export PATH := $(CURDIR)/$(BIN):$(PATH):/usr/sbin:/sbin
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
export PYTHONPATH := $(CURDIR)/molecule/shared
LOCAL_NODES := $(BIN)/python -m local_nodes

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

.PHONY: setup
setup: $(VENV)/ready ## Make .venv with the locked tools, and nothing else

$(VENV)/ready: requirements/dev.txt requirements/setup.sh
	@requirements/setup.sh $(VENV) requirements/dev.txt
	@touch $@

.PHONY: host-setup
host-setup: setup ## Install the packages that local nodes and tests need on this machine (needs root or sudo)
	@$(LOCAL_NODES) host-setup

.PHONY: demo
demo: setup ## A gateway and two nodes on this machine, converged with site.yml, answering a question
	@$(BIN)/python inventory/demo/run.py

.PHONY: demo-down
demo-down: setup ## Remove the demo's nodes, their volumes, its key, the local image registry and the network
	@$(BIN)/python inventory/demo/run.py --down

.PHONY: test
test: setup ## All tests: lint, unit, integration, every Molecule scenario
	@tests/run.sh

.PHONY: lint
lint: setup ## ansible-lint, yamllint, ruff, mypy, syntax checks, ansible-doc
	@tests/lint.sh

.PHONY: unit
unit: setup ## Unit tests; no node needed
	@$(BIN)/pytest -q tests/unit

.PHONY: integration
integration: setup ## Integration tests on a gateway and two local nodes
	@$(BIN)/pytest -q tests/integration

.PHONY: molecule
molecule: setup ## Every Molecule scenario; `make molecule SCENARIO=gateway` runs one
	@$(BIN)/pytest -q tests/molecule $(if $(SCENARIO),-k '$(SCENARIO)')

.PHONY: collection
collection: setup ## Build the collection's archive into dist/
	@$(BIN)/ansible-galaxy collection build --force --output-path dist .

.PHONY: lock
lock: setup ## Resolve the requirements anew and write the lock files (needs uv on PATH)
	@requirements/lock.sh

.PHONY: clean
clean: setup ## Remove all local nodes, their images and the cached engine images
	@$(LOCAL_NODES) clean
