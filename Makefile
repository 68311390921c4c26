# Everything that is built, tested and shown. On a fresh Debian 12 machine, as
# root and with Go, each target sets up what it needs (hack/setup).

ARCH ?= amd64
GO ?= go
# Where the programs of an architecture go: bin for this one's usual, amd64.
BIN = $(if $(filter amd64,$(ARCH)),bin,bin/$(ARCH))
PROGRAMS = installer uinit imageserver tools/firstlight
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.7.0
# What runs in virtual machines, and takes minutes.
VM_TESTS = ./hack/e2e/...
VM_TIMEOUT ?= 55m

export CGO_ENABLED = 0

.PHONY: setup-full packages fuzz all build initramfs rootfs roots setup demo demo-storage test test-full test-unit test-vm lint generate bench clean

all: build initramfs

setup:
	@hack/setup $(ARCH)

# With what the long series needs besides.
setup-full:
	@FULL=1 hack/setup $(ARCH)

# Static programs, the same bytes wherever they are built.
build:
	@mkdir -p $(BIN)
	GOOS=linux GOARCH=$(ARCH) $(GO) build -trimpath -ldflags '-s -w' -o $(BIN)/ $(addprefix ./,$(PROGRAMS))

# The shared part of the installer's initramfs. Its Debian programs are this
# machine's, or those that hack/setup has unpacked for another architecture.
INITRAMFS_ROOT ?= $(if $(filter $(shell dpkg --print-architecture),$(ARCH)),/,build/root/$(ARCH))
initramfs: setup
	$(GO) run ./hack/initramfs -arch $(ARCH) -root $(INITRAMFS_ROOT) -out build/initramfs-$(ARCH).cpio.zst

# A .deb and an .rpm in build/packages.
VERSION ?= 0.1.0
packages: build initramfs
	$(GO) run ./hack/packages -version $(VERSION) -arch $(ARCH) -programs $(BIN) -date $$(git log -1 --format=%ct)

rootfs: setup
	@hack/demo/rootfs

# The same root with each program for the network, and those for encryption and
# for disks, for the tests.
roots: rootfs
	@hack/network/roots
	@hack/demo/rootfs dracut
	@hack/demo/rootfs storage

# The main job, from PXE to a login prompt. What it needs is made side by side:
# the root file-system waits for the network, and the compiler does not.
demo: setup
	@$(MAKE) --no-print-directory -j3 build initramfs rootfs
	$(GO) build -o build/demo/demo ./hack/demo
	@build/demo/demo

# Everything that protects a machine's disks, in one: Secure Boot, a TPM, an
# encrypted root and encrypted data on a mirrored pair of NVMe disks; kexec, cold
# boot, a disk pulled, and the recovery key that the site server keeps.
demo-storage: setup
	@$(MAKE) --no-print-directory build initramfs rootfs
	@hack/demo/rootfs dracut
	$(GO) test -tags full -count=1 -timeout $(VM_TIMEOUT) -v -run 'TestStorageDone$$' ./hack/e2e

test: setup lint test-unit test-vm

test-unit: setup
	$(GO) test $$($(GO) list ./... | grep -v '/hack/e2e')
	$(GO) test -count=1 ./hack/houserules/...

test-vm: setup build initramfs roots
	$(GO) test -count=1 -timeout $(VM_TIMEOUT) -v $(VM_TESTS)

# The long series too.
test-full: setup-full lint test-unit build initramfs roots
	@hack/setup arm64 boot
	$(MAKE) --no-print-directory initramfs ARCH=arm64
	$(GO) test -tags full -count=1 -run 'Browser|Promtool' ./installer/status
	$(GO) test -tags full -count=1 -timeout 30m -run 'Often$$|Endless' ./imageserver/...
	$(MAKE) --no-print-directory fuzz
	$(GO) test -tags full -count=1 -timeout 120m -v $(VM_TESTS)

# What reads bytes of strangers, on the network and in images, a minute each.
FUZZED = ./netconfig/... ./storage ./installer/fetch ./installer/config ./installer/trust ./installer/receipt ./installer/shell ./imageserver/image ./imageserver/ingest ./imageserver/catalog/... ./imageserver/object/... ./proto/imageserver/bulk
fuzz:
	hack/fuzz -t 1m $(FUZZED)

lint:
	@unformatted=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go')); \
	if [ -n "$$unformatted" ]; then echo "gofmt -w these:" $$unformatted; exit 1; fi
	$(GO) vet -tags full ./...
	$(GO) run $(STATICCHECK) -tags full ./...

generate: setup
	hack/generate

# The figures of the README, as a table. BENCH names one part, or several
# separated by commas.
BENCH ?=
bench: setup build initramfs rootfs
	@hack/bench/setup
	@hack/bench/rootfs
	$(GO) run ./hack/bench -run '$(BENCH)'

clean:
	rm -rf bin build
