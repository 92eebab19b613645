# Every target sets up what it needs; the first run takes a minute or two, later ones no time.
# PYTHON=/path/to/python3 chooses the interpreter.

python := .venv/bin/python
checked := egress_policy addons $(wildcard deploy tests benchmarks)

# Debian keeps nft and ip there, and not every user's PATH names it.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin

.DEFAULT_GOAL := help
.PHONY: help install uninstall demo test check bench schema golden pictures lock clean set-up set-up-python set-up-tests

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /make \1	/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14

install: ## on this host, under systemd; as root. Again, from a newer tree: upgrade
	@deploy/install.sh

uninstall: ## off this host: agents are held to no policy afterwards; as root
	@deploy/uninstall.sh

demo: set-up ## the whole product at work in network namespaces of its own; as root
	@$(python) -m deploy.demo

test: set-up-tests ## every test, those on the real kernel included; as root
	@$(python) -m pytest --all-must-run

check: set-up-python ## lint, format and types
	@$(python) -m ruff check .
	@$(python) -m ruff format --check .
	@$(python) -m mypy $(checked)

bench: set-up ## side by side with what a user would pick instead; as root
	@$(python) -m benchmarks

schema: set-up-python ## write the JSON Schemas of policy files and audit records anew, from the types
	@for kind in policy team; do \
	    $(python) -m egress_policy.policy_schema $$kind > schema.new || exit 1; \
	    mv schema.new egress_policy/$$kind.schema.json; \
	done
	@$(python) -m egress_policy.audit_schema > schema.new
	@mv schema.new egress_policy/audit.schema.json

golden: set-up-python ## write the exports' golden files anew, to be read as a diff
	@for target in networkpolicy cilium istio; do \
	    $(python) -m egress_policy export $$target --namespace agents --policy tests/export/golden/policy.yaml \
	        > tests/export/golden/$$target.yaml 2>/dev/null || exit 1; \
	done

pictures: set-up-tests ## take the documentation's pictures of the console anew (needs optipng); as root
	@$(python) -m tests.console.screenshots docs/images
	optipng -quiet -o2 -strip all docs/images/console*.png

lock: ## pin the dependencies of pyproject.toml anew (needs uv); LOCK=--upgrade takes the newest
	UV_CUSTOM_COMPILE_COMMAND="make lock" uv pip compile pyproject.toml --extra dev --universal \
	    --python-version 3.12 --generate-hashes --no-emit-index-url --no-emit-find-links --quiet \
	    $(LOCK) --output-file constraints.txt
	# The image holds what runs, and setuptools to install it: the same versions.
	echo 'setuptools' | UV_CUSTOM_COMPILE_COMMAND="make lock" uv pip compile pyproject.toml - --universal \
	    --python-version 3.12 --generate-hashes --no-emit-index-url --no-emit-find-links --quiet \
	    --constraint constraints.txt --no-annotate --output-file deploy/image/requirements.txt

clean: ## remove what was built and installed here
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

set-up:
	@deploy/set-up.sh

set-up-tests:
	@deploy/set-up.sh tests

set-up-python:
	@deploy/set-up.sh python
