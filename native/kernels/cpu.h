// Which instruction set to use, decided once at run time.
#pragma once

namespace headgate::kernels {

// `avx512` is F, BW, DQ, VL, VBMI and VNNI: what came with Ice Lake and Zen 4.
// `amx` is `avx512` with AMX tiles for integer products.
enum class Isa { scalar, avx2, avx512, amx, neon };

// The best instruction set that both this build and this CPU (and its operating
// system) support.
Isa best_isa();

// True if kernels for `isa` are in this build and the CPU can run them. The first call
// for `amx` asks the operating system, once per process, to let it use tiles.
bool supports(Isa isa);

const char* name(Isa isa);

// Parses "scalar", "avx2", "avx512", "amx" or "neon". Throws std::invalid_argument
// for another name, or for a set that cannot run here.
Isa parse_isa(const char* name);

}  // namespace headgate::kernels
