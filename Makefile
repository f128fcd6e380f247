# `make demo` shows the main job, `make test` runs every test. Both install what they need.

.PHONY: demo test fuzz bench lint build

build:
	cargo build --release --locked -p palisade -p barter

demo:
	scripts/install-deps demo
	cargo build --release --locked -p palisade -p barter
	install -m 0755 target/release/barter target/release/ollama-stand-in examples/barter/bin/
	target/release/palisade -f examples/barter/compose.yaml rehearse
	target/release/palisade -f examples/barter/compose.yaml -f examples/barter/edge.yaml rehearse

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked
	scripts/deny

test:
	scripts/install-deps test
	$(MAKE) lint
	scripts/test

# SECONDS_EACH: how long each target runs.
SECONDS_EACH ?= 300
fuzz:
	scripts/fuzz $(SECONDS_EACH)

bench:
	scripts/install-deps bench
	bench/run
