#!/bin/sh
# Build llama-bench from the source package of llama-cpp-python, which carries llama.cpp.
#
#     build_llama_cpp.sh FOLDER        # leaves FOLDER/llama-bench, one static binary
#
# JOBS (2) says how many compilers run at once, PYTHON (python3) which pip downloads.
set -eu

VERSION=0.3.36
[ $# -eq 1 ] || { sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2; }
mkdir -p "$1"
folder=$(cd "$1" && pwd)
source=$folder/llama_cpp_python-$VERSION

if [ ! -d "$source" ]; then
    "${PYTHON:-python3}" -m pip download --quiet --no-deps --no-binary llama-cpp-python \
        --dest "$folder" "llama-cpp-python==$VERSION"
    tar xzf "$source.tar.gz" -C "$folder"
    rm "$source.tar.gz"
fi

# on FLAG OPTION: the option, if the processor has the flag.
on() {
    grep -qw "$1" /proc/cpuinfo && echo "-DGGML_$2=ON" || echo "-DGGML_$2=OFF"
}

# Everything that this processor has, but:
# - no weight repacking (GGML_CPU_REPACK): it copies weights into anonymous memory at
#   start, so that a memory limit below the size of the model kills the process;
# - no AMX, which implies the same copy and crashed on prompts.
# GGML_NATIVE would switch AMX on with the rest, so each instruction set is named.
cmake -S "$source/vendor/llama.cpp" -B "$folder/build" \
    -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF \
    -DGGML_NATIVE=OFF -DGGML_CPU_REPACK=OFF \
    -DGGML_AMX_TILE=OFF -DGGML_AMX_INT8=OFF -DGGML_AMX_BF16=OFF \
    "$(on sse4_2 SSE42)" "$(on avx AVX)" "$(on avx2 AVX2)" "$(on fma FMA)" \
    "$(on f16c F16C)" "$(on bmi2 BMI2)" "$(on avx512f AVX512)" \
    "$(on avx512vbmi AVX512_VBMI)" "$(on avx512_vnni AVX512_VNNI)" \
    "$(on avx512_bf16 AVX512_BF16)" \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF \
    -DLLAMA_BUILD_APP=OFF -DLLAMA_OPENSSL=OFF
nice -n 10 cmake --build "$folder/build" --target llama-bench --parallel "${JOBS:-2}"
cp "$folder/build/bin/llama-bench" "$folder/llama-bench"
