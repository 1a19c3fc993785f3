# Aliases of ./dev, which is a plain Python script.
.PHONY: build-worker test proto check run bench fmt

build-worker:
	./dev build

test proto check run bench fmt:
	./dev $@
