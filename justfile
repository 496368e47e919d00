# Run `just` for the list. Each recipe uses the environment that is active.

default:
    @just --list

# Lint, format check, type check
check:
    ruff check .
    ruff format --check .
    mypy

# The tests of every change
test *ARGS:
    python -m pytest {{ARGS}}

# The long proofs: kills at full width, thousands of mutations, every recipe
test-slow *ARGS:
    python -m pytest -m slow {{ARGS}}

# Print the help of every command, as the reference
docs:
    @for command in train evaluate report predict convert verify summary recipes doctor augment-preview embed similar stylize; do vggjax $command --help; done

# The speed figures, each against its peers
bench *ARGS:
    python -m benchmarks {{ARGS}}
