// Which instruction set to use, decided once at run time.
#pragma once

namespace headgate::kernels {

enum class Isa { scalar, avx2, avx512, neon };

// The best instruction set that both this build and this CPU (and its operating
// system) support.
Isa best_isa();

// True if kernels for `isa` are in this build and the CPU can run them.
bool supports(Isa isa);

const char* name(Isa isa);

// Parses "scalar", "avx2", "avx512" or "neon". Throws std::invalid_argument for
// another name, or for a set that cannot run here.
Isa parse_isa(const char* name);

}  // namespace headgate::kernels
