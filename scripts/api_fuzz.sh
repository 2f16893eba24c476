#!/usr/bin/env bash
# Requests made from the server's OpenAPI document, as many as asked for.
# usage: scripts/api_fuzz.sh [REQUESTS PER OPERATION AND KIND]
set -euo pipefail
cd "$(dirname "$0")/.."
HEADGATE_API_EXAMPLES="${1:-1000}" .venv/bin/python -m pytest -q tests/server/test_schema.py
