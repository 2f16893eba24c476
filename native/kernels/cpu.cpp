#include "kernels/cpu.h"

#include <cstring>
#include <stdexcept>
#include <string>

#if defined(HEADGATE_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace headgate::kernels {
namespace {

#if defined(HEADGATE_AMX)
// Linux keeps the tile registers only for processes that ask (arch/x86/xstate.rst).
bool tiles_granted() {
  constexpr unsigned kTile = 1u << 24, kInt8 = 1u << 25;
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  return (d & kTile) && (d & kInt8) && syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}
#endif

}  // namespace

bool supports(Isa isa) {
  switch (isa) {
    case Isa::scalar:
      return true;
#if defined(__x86_64__)
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi2");
    case Isa::avx512:
      return supports(Isa::avx2) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi") &&
             __builtin_cpu_supports("avx512vnni");
#if defined(HEADGATE_AMX)
    case Isa::amx: {
      static const bool granted = tiles_granted();
      return granted && supports(Isa::avx512);
    }
#endif
#elif defined(__aarch64__)
    case Isa::neon: {
#if defined(__linux__)
      return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#elif defined(__APPLE__)
      int value = 0;
      size_t size = sizeof value;
      return sysctlbyname("hw.optional.arm.FEAT_DotProd", &value, &size, nullptr, 0) == 0 && value;
#else
      return false;
#endif
    }
#endif
    default:
      return false;
  }
}

Isa best_isa() {
  for (Isa isa : {Isa::amx, Isa::avx512, Isa::avx2, Isa::neon}) {
    if (supports(isa)) return isa;
  }
  return Isa::scalar;
}

const char* name(Isa isa) {
  switch (isa) {
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
    case Isa::amx:
      return "amx";
    case Isa::neon:
      return "neon";
    default:
      return "scalar";
  }
}

Isa parse_isa(const char* text) {
  for (Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512, Isa::amx, Isa::neon}) {
    if (std::strcmp(text, name(isa)) != 0) continue;
    if (!supports(isa)) {
      throw std::invalid_argument(std::string("this machine cannot run ") + text + " kernels");
    }
    return isa;
  }
  throw std::invalid_argument(std::string("unknown instruction set: ") + text);
}

}  // namespace headgate::kernels
