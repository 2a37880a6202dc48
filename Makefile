# Everything here runs on a bare Debian or Ubuntu machine, as root or with sudo.

SHELL := /bin/bash
BIN := .venv/bin
# sudo would drop CI, by which a missing program fails instead of being skipped.
ROOT := $(if $(filter 0,$(shell id -u)),,sudo $(if $(CI),env CI=$(CI)))
WITH_LIBVIRTD := $(ROOT) $(BIN)/python contrib/setup/libvirtd.py run --
SCRIPTS := .ci/run contrib/demo/demo contrib/setup/packages contrib/setup/part contrib/setup/parts \
	contrib/setup/setup contrib/setup/unpacked contrib/setup/venv \
	contrib/lab/lab contrib/lab/customize contrib/lab/here contrib/lab/make-pool \
	contrib/lab/provision contrib/lab/guest/build-kernel contrib/lab/guest/init \
	contrib/lab/files/usr/local/sbin/lab-net contrib/release/release \
	contrib/packaging/debian/vmcloner.postinst contrib/packaging/debian/vmcloner.postrm \
	contrib/packaging/debian/vmcloner.prerm
# What pytest collects in a lab: collecting everything takes long there.
ON_LVM := tests/lab tests/lvm tests/nfs
ON_XEN := tests/lab tests/pxe tests/xen
XEN_SHORT := tests/xen/test_fleet.py::test_three_clones \
	tests/xen/test_conformance.py::test_a_console_is_typed_into \
	tests/xen/test_conformance.py::TestXen::test_shutdown_ends_what_runs
SEED := $(or $(SEED),$(shell date +%s))
KILLS := $(or $(KILLS),500)
# A real daemon or guest on a busy machine may fail once. The summary lists what passed only when it
# ran again, as RERUN: a fault to find, though not one that stops everybody.
AGAIN := --reruns 1
# The parts of make test, begun in this order, so many at a time: much of a real test is waiting.
# What labs are made of is built meanwhile; a part that needs it sooner waits for it.
PARTS := test-real lab test-lvm lint test-units test-xen-short
AT_ONCE := 3
# Markers of tests that need libvirtd, or root for mounts, networks, Ceph, and programs of others: one
# after the other, since each sees all domains of the daemon; and of those that need a lab, or long.
REAL := libvirt or guests or filesystems or pxe or ceph or others
ELSEWHERE := lvm or nfs or xen or slow

.DEFAULT_GOAL := help
.PHONY: help setup stop demo test test-host test-real test-units test-lvm test-nfs test-dd test-powercut test-guests test-hosts test-xen test-xen-short lab test-fast test-kills lint bench bench-hosts bench-lvm bench-pytest bench-rbd bench-warm bench-xen-warm clean tools browser unpacked test-fuzz docs man deb test-packages test-userlands test-warm

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what is missing, so that .venv/bin/vmcloner works (leaves a libvirtd running)
	@contrib/setup/setup

stop: ## Stop the libvirtd that setup left running
	@$(ROOT) python3 contrib/setup/libvirtd.py stop

demo: ## Set up, then clone, boot, list and delete five virtual machines
	@contrib/demo/demo

# ARGS selects tests on this machine, so with ARGS no lab is started.
test: tools $(if $(ARGS),lint test-host) ## Set up, then run all tests except the slow ones, including those on real machines
	@$(if $(ARGS),,contrib/setup/parts $(AT_ONCE) $(PARTS))

# The longest goes first; the others take what it leaves of the processors.
part-%:
	@$(if $(filter $(firstword $(PARTS)),$*),,nice -n 5) contrib/setup/part $*

test-host: tools browser unpacked ## Run the tests that need neither device-mapper nor Xen (ARGS="tests/core")
	@$(WITH_LIBVIRTD) $(BIN)/pytest $(AGAIN) -m "not ($(ELSEWHERE))" $(ARGS)

test-real: tools unpacked ## Of those, the ones that boot guests, mount file systems, or make networks or Ceph
	@$(WITH_LIBVIRTD) $(BIN)/pytest $(AGAIN) -m "($(REAL)) and not ($(ELSEWHERE))" $(ARGS)

test-units: tools browser ## And all that need none of that
	@$(WITH_LIBVIRTD) $(BIN)/pytest $(AGAIN) -m "not ($(REAL) or $(ELSEWHERE))" $(ARGS)

test-lvm: tools ## Run the tests on device-mapper and NFS: in the lab, or here if VMCLONER_LVM_DEVICE is a spare device
	@$(ROOT) contrib/lab/$(if $(VMCLONER_LVM_DEVICE),here $(VMCLONER_LVM_DEVICE) $(BIN)/pytest --ignore tests/lab,lab kvm test --seconds 3600 --env VMCLONER_EMPTY_DEVICE=/dev/vdc --) \
		$(AGAIN) -m "(lvm or nfs) and not slow" $(or $(ARGS),$(ON_LVM))

test-dd: tools ## Run the tests of full copies in volume groups, in the lab
	@$(ROOT) contrib/lab/lab kvm test --seconds 3600 -- -m lvm $(or $(ARGS),tests/dd)

test-nfs: tools ## Run the tests on NFS mounts, including the long ones, in the lab (an hour)
	@$(ROOT) contrib/lab/lab kvm test --seconds 10800 -- -m nfs $(or $(ARGS),tests/nfs)

test-powercut: tools ## Cut the power of labs during LVM transactions, and test the recovery
	@$(ROOT) $(BIN)/pytest -s -m slow $(or $(ARGS),tests/lab/test_powercut.py)

test-guests: tools ## Boot and fork twenty clones of a Debian built here at once, and other images one by one (an hour)
	@$(WITH_LIBVIRTD) $(BIN)/pytest -s -m slow $(or $(ARGS),tests/identity)

test-hosts: tools ## Silent links, hanging engines, random kills and Ceph on three machines made of namespaces (SEED=1 KILLS=50, 25 min)
	@$(WITH_LIBVIRTD) $(BIN)/pytest -s -m slow $(or $(ARGS),tests/hosts tests/rbd)

test-xen: tools ## Run the tests on Xen, including the long ones, in the lab (PXE_GUESTS=10)
	@$(ROOT) contrib/lab/lab xen test --seconds 5400 $(if $(PXE_GUESTS),--env PXE_GUESTS=$(PXE_GUESTS)) -- -m xen $(or $(ARGS),$(ON_XEN))

test-xen-short: tools
	@$(ROOT) contrib/lab/lab xen test --seconds 3600 -- $(AGAIN) -m "xen and not slow" \
		$(or $(ARGS),tests/pxe $(XEN_SHORT))

lab: tools ## Build the lab: a KVM host and a Xen host for tests (contrib/lab/README.md)
	@$(ROOT) contrib/lab/lab build

test-fast: tools ## Run the tests that need no daemon and no root
	@$(BIN)/pytest -m "not ($(REAL) or $(ELSEWHERE))" --ignore tests/packaging $(ARGS)

test-kills: tools ## Kill and disturb commands at any of their calls (SEED=1 KILLS=500), on files and in the lab
	@$(WITH_LIBVIRTD) $(BIN)/python -m tests.campaign.campaign --seed $(SEED) --kills $(KILLS) --faults $(KILLS) $(ARGS)
	@$(WITH_LIBVIRTD) $(BIN)/python -m tests.campaign.rubbish --seed $(SEED) --kills $$(($(KILLS) / 10))
	@$(ROOT) contrib/lab/lab kvm test --seconds 14400 --env SEED=$(SEED) --env KILLS=$$(($(KILLS) / 10)) -- -m lvm tests/campaign

test-fuzz: tools ## Feed all readers of foreign input with mutated inputs (SECONDS=600 SEED=1)
	@$(BIN)/python -m tests.fuzz.harness all $(SEED) --seconds $(or $(SECONDS),600)

lint: tools ## Check style, types, layers and scripts
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@shellcheck -x $(SCRIPTS) $(addprefix plugins/vmcloner_tiny/,init reseed seal apply) \
		vmcloner_core/reseed.sh

docs: tools ## Build the documentation's site into build/docs/html; a warning is an error
	@$(BIN)/python -m contrib.docs.build html
	@echo "build/docs/html/index.html"

man: tools ## Build the manual pages into build/man
	@$(BIN)/python -m contrib.docs.build man

deb: tools ## Build the Debian packages into dist, each in a chroot of its release (ARGS="trixie", 3 min)
	@$(ROOT) $(BIN)/python -m contrib.packaging.deb $(ARGS)

test-packages: tools ## Build the Debian packages, install and purge them in chroots (6 min)
	@$(ROOT) $(BIN)/pytest -m slow $(or $(ARGS),tests/packaging)

test-userlands: tools ## Set up and run the unit tests and the libvirt driver's in chroots of Debian 13 and Ubuntu 24.04 (ARGS="noble")
	@$(ROOT) $(BIN)/python -m contrib.packaging.userlands $(ARGS)

bench: tools ## Compare vmcloner's speed with other tools, and draw docs/figures (ARGS="create -n 20")
	@contrib/setup/packages virtinst
	@$(WITH_LIBVIRTD) $(BIN)/python benchmarks/run.py $(or $(ARGS),--json docs/figures/bench.json)
	@$(if $(ARGS),,$(BIN)/python -m benchmarks.pictures)
	@$(if $(ARGS),,$(WITH_LIBVIRTD) $(BIN)/python -m benchmarks.startup)

bench-hosts: tools ## Measure the controller of many hosts with simulated ones (ARGS="10 100 1000 --each 100")
	@$(BIN)/python -m benchmarks.hosts $(ARGS)

bench-pytest: tools ## Measure what a pool of machines saves tests, with tiny guests (ARGS="--tests 40 --size 8")
	@$(WITH_LIBVIRTD) $(BIN)/python -m benchmarks.pytest_pool --real $(ARGS)

test-warm: tools ## Fork real guests, and kill commands that do (5 min)
	@$(WITH_LIBVIRTD) $(BIN)/pytest -m slow tests/e2e/test_warm.py

bench-warm: tools ## Compare clones that are forked from a booted guest with clones that boot (ARGS="-n 20 100", 8 min)
	@$(WITH_LIBVIRTD) $(BIN)/python -m benchmarks.warm $(ARGS)

bench-lvm: tools ## Compare the speed of LVM thin clones with loops of lvcreate, in the lab (ARGS="100 1000 --json -")
	@$(ROOT) contrib/lab/lab kvm run --seconds 5400 -- python3 - $(ARGS) < benchmarks/lvm.py

bench-xen-warm: tools ## Compare guests that continue from one saved memory with boots, on Xen, in the lab (ARGS=5)
	@$(ROOT) contrib/lab/lab xen run --seconds 5400 -- python3 - $(ARGS) < benchmarks/xen_warm.py

bench-rbd: tools ## Compare clones in Ceph with loops of rbd clone, on a cluster of one node (ARGS="300")
	@$(ROOT) $(BIN)/python -m benchmarks.rbd $(ARGS)

clean: ## Remove generated files: .venv, caches, build results
	rm -rf .venv build dist benchmarks/results .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -rf .import_linter_cache *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +

# Ubuntu has no package of Chromium: there, the test that needs it is skipped.
browser:
	@. /etc/os-release; [ "$$ID" = ubuntu ] || contrib/setup/packages chromium

tools:
	@contrib/setup/packages
	@contrib/setup/venv

# What tests marked "others" compare with.
unpacked: tools
	@contrib/setup/unpacked
