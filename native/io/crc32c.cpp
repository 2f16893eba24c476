#include "io/crc32c.h"

#include <array>
#include <bit>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace headgate {
namespace {

// State throughout this file is the raw register: complemented on entry and on exit only.
// Reflected order: bit 31 is the coefficient of x^0.
constexpr std::uint32_t kPolynomial = 0x82F63B78;

using ByteTables = std::array<std::array<std::uint32_t, 256>, 8>;

// tables[k][v]: the register after byte v and then k zero bytes.
constexpr ByteTables make_byte_tables() {
  ByteTables tables{};
  for (std::uint32_t value = 0; value < 256; ++value) {
    std::uint32_t state = value;
    for (int bit = 0; bit < 8; ++bit) state = (state >> 1) ^ ((state & 1) ? kPolynomial : 0);
    tables[0][value] = state;
  }
  for (std::size_t k = 1; k < tables.size(); ++k) {
    for (std::size_t value = 0; value < 256; ++value) {
      const std::uint32_t before = tables[k - 1][value];
      tables[k][value] = (before >> 8) ^ tables[0][before & 0xFF];
    }
  }
  return tables;
}

constexpr ByteTables kByteTables = make_byte_tables();

std::uint64_t load64(const std::uint8_t* bytes) {
  std::uint64_t word;
  std::memcpy(&word, bytes, sizeof(word));
  return word;
}

std::uint32_t update_portable(std::uint32_t state, const std::uint8_t* bytes, std::size_t size) {
  if constexpr (std::endian::native == std::endian::little) {
    for (; size >= 8; bytes += 8, size -= 8) {
      const std::uint64_t word = load64(bytes) ^ state;
      state = 0;
      for (int i = 0; i < 8; ++i) state ^= kByteTables[7 - i][(word >> (8 * i)) & 0xFF];
    }
  }
  for (; size > 0; ++bytes, --size) {
    state = (state >> 8) ^ kByteTables[0][(state ^ *bytes) & 0xFF];
  }
  return state;
}

#if defined(__x86_64__)
#define HEADGATE_HAVE_CRC 1
// Compiled for SSE4.2 function by function, so that the rest of the file runs on any x86-64.
#ifdef __clang__
#define HEADGATE_CRC_TARGET __attribute__((target("sse4.2,crc32")))
#else
#define HEADGATE_CRC_TARGET __attribute__((target("sse4.2")))
#endif

bool have_crc_instructions() { return __builtin_cpu_supports("sse4.2"); }

HEADGATE_CRC_TARGET inline std::uint32_t step8(std::uint32_t state, std::uint64_t word) {
  return static_cast<std::uint32_t>(_mm_crc32_u64(state, word));
}
HEADGATE_CRC_TARGET inline std::uint32_t step1(std::uint32_t state, std::uint8_t byte) {
  return _mm_crc32_u8(state, byte);
}

#elif defined(__aarch64__) && (defined(__linux__) || defined(__APPLE__))
#define HEADGATE_HAVE_CRC 1
// Inline assembly: compilers disagree on how a function asks for the crc extension.
#define HEADGATE_CRC_TARGET

bool have_crc_instructions() {
#if defined(__linux__)
  constexpr unsigned long kHwcapCrc32 = 1UL << 7;
  return (getauxval(AT_HWCAP) & kHwcapCrc32) != 0;
#else
  int present = 0;
  std::size_t size = sizeof(present);
  return sysctlbyname("hw.optional.armv8_crc32", &present, &size, nullptr, 0) == 0 && present;
#endif
}

inline std::uint32_t step8(std::uint32_t state, std::uint64_t word) {
  asm(".arch_extension crc\n\tcrc32cx %w0, %w0, %x1" : "+r"(state) : "r"(word));
  return state;
}
inline std::uint32_t step1(std::uint32_t state, std::uint8_t byte) {
  asm(".arch_extension crc\n\tcrc32cb %w0, %w0, %w1" : "+r"(state) : "r"(byte));
  return state;
}
#endif

#ifdef HEADGATE_HAVE_CRC

// Moves a register over `distance` zero bytes in four look-ups. The map is linear over GF(2), so
// 32 basis vectors give it all.
class ZeroShift {
 public:
  explicit ZeroShift(std::size_t distance) {
    std::array<std::uint32_t, 32> basis;
    const std::array<std::uint8_t, 64> zeros{};
    for (int bit = 0; bit < 32; ++bit) {
      std::uint32_t state = std::uint32_t{1} << bit;
      for (std::size_t left = distance; left > 0;) {
        const std::size_t run = left < zeros.size() ? left : zeros.size();
        state = update_portable(state, zeros.data(), run);
        left -= run;
      }
      basis[bit] = state;
    }
    for (std::size_t byte = 0; byte < 4; ++byte) {
      for (std::uint32_t value = 0; value < 256; ++value) {
        std::uint32_t sum = 0;
        for (int bit = 0; bit < 8; ++bit) {
          if (value >> bit & 1) sum ^= basis[8 * byte + bit];
        }
        tables_[byte][value] = sum;
      }
    }
  }

  std::uint32_t operator()(std::uint32_t state) const {
    return tables_[0][state & 0xFF] ^ tables_[1][state >> 8 & 0xFF] ^
           tables_[2][state >> 16 & 0xFF] ^ tables_[3][state >> 24];
  }

 private:
  std::array<std::array<std::uint32_t, 256>, 4> tables_;
};

// The instruction has a latency of three cycles and a throughput of one: three independent streams
// of `lane` bytes each keep it busy, joined by shifting the earlier ones over the later ones.
HEADGATE_CRC_TARGET std::uint32_t update_lanes(std::uint32_t state, const std::uint8_t*& bytes,
                                               std::size_t& size, std::size_t lane,
                                               const ZeroShift& over_lane) {
  for (; size >= 3 * lane; bytes += 3 * lane, size -= 3 * lane) {
    std::uint32_t second = 0, third = 0;
    for (std::size_t i = 0; i < lane; i += 8) {
      state = step8(state, load64(bytes + i));
      second = step8(second, load64(bytes + lane + i));
      third = step8(third, load64(bytes + 2 * lane + i));
    }
    state = over_lane(over_lane(state) ^ second) ^ third;
  }
  return state;
}

HEADGATE_CRC_TARGET std::uint32_t update_hardware(std::uint32_t state, const std::uint8_t* bytes,
                                                  std::size_t size) {
  constexpr std::size_t kLongLane = 4096;  // long: joining costs nothing; short: little is left
  constexpr std::size_t kShortLane = 256;
  static const ZeroShift over_long(kLongLane);
  static const ZeroShift over_short(kShortLane);
  state = update_lanes(state, bytes, size, kLongLane, over_long);
  state = update_lanes(state, bytes, size, kShortLane, over_short);
  for (; size >= 8; bytes += 8, size -= 8) state = step8(state, load64(bytes));
  for (; size > 0; ++bytes, --size) state = step1(state, *bytes);
  return state;
}

#endif  // HEADGATE_HAVE_CRC

}  // namespace

std::uint32_t crc32c_portable(const void* data, std::size_t size, std::uint32_t seed) {
  return ~update_portable(~seed, static_cast<const std::uint8_t*>(data), size);
}

std::uint32_t crc32c(const void* data, std::size_t size, std::uint32_t seed) {
#ifdef HEADGATE_HAVE_CRC
  static const bool fast = have_crc_instructions();
  if (fast) return ~update_hardware(~seed, static_cast<const std::uint8_t*>(data), size);
#endif
  return crc32c_portable(data, size, seed);
}

}  // namespace headgate
