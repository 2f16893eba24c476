#!/usr/bin/env bash
# Build and run the native tests: plain | address,undefined | thread | neon
set -euo pipefail
cd "$(dirname "$0")/.."
kind=$1
build=build/native-${kind//,/-}
PATH=$PWD/.venv/bin:$PATH
options=(-G Ninja -DHEADGATE_TESTS=ON)

case $kind in
  plain) ;;
  address,undefined | thread)
    options+=(-DHEADGATE_SANITIZE="$kind" -DCMAKE_BUILD_TYPE=RelWithDebInfo)
    ;;
  neon)
    compiler=$(command -v aarch64-linux-gnu-g++ || true)
    emulator=$(command -v qemu-aarch64-static || command -v qemu-aarch64 || true)
    if [[ -z $compiler || -z $emulator ]]; then
      echo "neon tests skipped: they need aarch64-linux-gnu-g++ and qemu-user"
      exit 0
    fi
    options+=(-DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64
      -DCMAKE_CXX_COMPILER="$compiler" -DCMAKE_EXE_LINKER_FLAGS=-static
      "-DCMAKE_CROSSCOMPILING_EMULATOR=$emulator;-cpu;max")
    ;;
  *)
    echo "usage: $0 plain | address,undefined | thread | neon" >&2
    exit 2
    ;;
esac

cmake -S . -B "$build" "${options[@]}" >"${TMPDIR:-/tmp}/headgate-cmake.log" || {
  cat "${TMPDIR:-/tmp}/headgate-cmake.log"
  exit 1
}
cmake --build "$build" --parallel 2
ctest --test-dir "$build" --output-on-failure
