#pragma once

#include <cstddef>
#include <cstdint>

namespace headgate {

// CRC-32C (Castagnoli, RFC 3720 section 12.1): reflected polynomial 0x82F63B78, initial value and
// final xor of all ones, so that crc32c("123456789", 9) == 0xE3069283.
//
// `seed` is the checksum of what came before: crc32c(b, nb, crc32c(a, na)) is the checksum of a
// followed by b. Uses the processor's CRC instructions where it has them. Thread-safe, never fails.
std::uint32_t crc32c(const void* data, std::size_t size, std::uint32_t seed = 0);

// The table version, whatever the processor; for tests.
std::uint32_t crc32c_portable(const void* data, std::size_t size, std::uint32_t seed = 0);

}  // namespace headgate
