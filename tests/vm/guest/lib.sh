# What the tests in guests share. Builds on tests/e2e/lib.sh.
# shellcheck shell=bash

. /tests/e2e/lib.sh
