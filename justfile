# Shorthands for people who have `just`; the npm scripts are the interface.

# What a change must pass.
ready:
    npm test

setup:
    npm run setup

check:
    npm run check

fmt:
    cargo fmt --all

# The core's unit tests: no root, no guest.
unit *filter:
    cargo test -p infinization-core --lib {{ filter }}

# One file of the core's integration tests.
core name *filter:
    scripts/private cargo test -p infinization-core --test {{ name }} {{ filter }}

# JavaScript tests against the addon that is built.
js *files:
    scripts/private node_modules/.bin/jest {{ files }}

# Renders docs/errors.md anew.
docs:
    INFINIZATION_WRITE_DOCS=1 cargo test -p infinization-core --test docs_errors

# What all dependencies are licensed under, and known advisories.
deny:
    cargo deny check
