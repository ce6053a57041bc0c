# What one types every day; continuous integration runs `tests/run`.

_list:
    @just --list

# Everything that is checked without running a test.
check:
    tests/run --check

# All tests on all databases, or only those whose names contain a filter.
test *filters:
    tests/run {{ filters }}

# A server with an embedded database on http://127.0.0.1:8080.
run *arguments:
    cargo run --release -- {{ arguments }}

# The benchmark table.
bench *arguments:
    tests/load/bench {{ arguments }}

# A shell with private databases and a RabbitMQ; TOMBOLA_TEST_* say where they are, leaving the shell stops them.
up:
    tests/run --services "$SHELL"
