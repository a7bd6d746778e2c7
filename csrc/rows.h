// Where a row's numbers are: row -> (offset, dim), one functor per layout. Nothing else knows the
// layouts.
#pragma once

#include "host_device.h"

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace varemb {
namespace {

struct Row {
  int64_t offset;  // of the row's first number in the flat values
  int32_t dim;     // numbers to read, at most the table's width; -1: the table has no such row
};

// A number of the index.
template <typename T>
VAREMB_HOST_DEVICE T read_index(const T* at) {
#if defined(__CUDA_ARCH__)
  return __ldg(at);
#else
  return *at;
#endif
}

// How many numbers of a row a lookup may read: all, or a limit for all lookups or for each.
struct Limit {
  const int32_t* numbers = nullptr;  // [1] or [L]
  int64_t stride = 0;

  VAREMB_HOST_DEVICE int32_t apply(int32_t dim, int64_t position) const {
    if (numbers == nullptr) return dim;
    const int32_t limit = numbers[position * stride];
    return limit < 0 ? 0 : limit < dim ? limit : dim;
  }
};

// Packed layout: a 32-byte block serves 24 rows, an 8-byte offset of its first row and 24 one-byte
// dims in granules. A lookup touches one 32-byte sector: the offset is the base plus the dims
// before the row.
struct PackedRows {
  static constexpr bool kMayLackRows = false;
  static constexpr bool kIsIndexed = true;
  static constexpr int kRowsPerBlock = 24;
  static constexpr int kBlockBytes = 32;
  static constexpr int kBaseBytes = 8;

  const uint8_t* blocks;  // [ceil(num_rows / 24) * 32]
  int64_t num_rows;
  int32_t width;
  int32_t granule;

  VAREMB_HOST_DEVICE Row operator()(int64_t row) const {
    const uint64_t block_number = static_cast<uint64_t>(row) / kRowsPerBlock;
    const int slot = static_cast<int>(static_cast<uint64_t>(row) % kRowsPerBlock);
    const uint8_t* block = blocks + block_number * kBlockBytes;
    const int32_t dim = block[kBaseBytes + slot] * granule;
    return {
        base_of(block) + static_cast<int64_t>(sum_before(block, slot)) * granule,
        dim < width ? dim : width};
  }

  // The row that holds the number at `offset` of the flat values; offset must be below their count.
  VAREMB_HOST_DEVICE int64_t row_at(int64_t offset) const {
    int64_t low = 0;
    int64_t high = (num_rows + kRowsPerBlock - 1) / kRowsPerBlock;
    while (high - low > 1) {  // the last block whose base is not past the offset
      const int64_t middle = low + (high - low) / 2;
      (base_of(blocks + middle * kBlockBytes) <= offset ? low : high) = middle;
    }
    const uint8_t* block = blocks + low * kBlockBytes;
    int64_t end = base_of(block);
    for (int slot = 0; slot < kRowsPerBlock; ++slot) {
      end += static_cast<int64_t>(block[kBaseBytes + slot]) * granule;
      if (offset < end) return low * kRowsPerBlock + slot;
    }
    return num_rows;
  }

  // What a lookup of the row reads first.
  const void* entry_of(int64_t row) const {
    return blocks + static_cast<uint64_t>(row) / kRowsPerBlock * kBlockBytes;
  }

 private:
  // One of the four words of a block: the base, then the dims of eight rows each.
  VAREMB_HOST_DEVICE static uint64_t word_of(const uint8_t* block, int number) {
#if defined(__CUDA_ARCH__)
    // Without the type the compiler would load byte by byte.
    return read_index(reinterpret_cast<const uint64_t*>(block) + number);
#else
    uint64_t word;
    std::memcpy(&word, block + number * 8, sizeof(word));
    return word;
#endif
  }

  VAREMB_HOST_DEVICE static int64_t base_of(const uint8_t* block) {
    return static_cast<int64_t>(word_of(block, 0));
  }

#if defined(__AVX2__) && !defined(__CUDACC__)
  static uint32_t sum_before(const uint8_t* block, int slot) {
    // Byte numbers; the base's bytes are given the largest one so that the comparison never selects
    // them.
    const __m256i number = _mm256_setr_epi8(
        127, 127, 127, 127, 127, 127, 127, 127, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14,
        15, 16, 17, 18, 19, 20, 21, 22, 23);
    const __m256i before = _mm256_cmpgt_epi8(_mm256_set1_epi8(static_cast<char>(slot)), number);
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block));
    const __m256i sums = _mm256_sad_epu8(_mm256_and_si256(bytes, before), _mm256_setzero_si256());
    const __m128i half =
        _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    return static_cast<uint32_t>(_mm_cvtsi128_si32(half)) +
           static_cast<uint32_t>(_mm_extract_epi32(half, 2));
  }
#else
  // Eight dims at a time: those at and beyond the slot are cleared, neighbours added in 16 bits,
  // and the four sums collected in the highest 16 by a multiplication. Without branches, so that a
  // GPU can have the words of several rows on their way.
  VAREMB_HOST_DEVICE static uint32_t sum_before(const uint8_t* block, int slot) {
    constexpr uint64_t kEven = 0x00ff00ff00ff00ffull;
    uint32_t sum = 0;
    for (int part = 0; part < 3; ++part) {
      const int kept = slot - 8 * part;
      const uint64_t mask = kept <= 0 ? 0 : kept >= 8 ? ~0ull : (1ull << (8 * kept)) - 1;
      const uint64_t dims = word_of(block, 1 + part) & mask;
      const uint64_t pairs = (dims & kEven) + ((dims >> 8) & kEven);
      sum += static_cast<uint32_t>((pairs * 0x0001000100010001ull) >> 48);
    }
    return sum;
  }
#endif
};

// Paged layout: a 4-byte handle per row names a chunk of rows of one dim and the row's slot in it;
// an 8-byte word per chunk says where the chunk begins and the dim. A row moves by a new handle.
struct PagedRows {
  static constexpr bool kMayLackRows = true;
  static constexpr bool kIsIndexed = true;
  static constexpr int kSlotBits = 8;
  static constexpr int kDimBits = 12;

  const uint32_t* handles;  // [num_rows]: chunk << kSlotBits | slot
  const uint64_t* chunks;   // [num_chunks]: base << kDimBits | dim
  int64_t num_chunks;
  int64_t num_rows;
  int64_t numbers;  // E
  int32_t width;

  // A handle of a chunk that is not there (all ones: the row was removed), or of numbers that are
  // not there, reads nothing.
  VAREMB_HOST_DEVICE Row operator()(int64_t row) const {
    const uint32_t handle = read_index(handles + row);
    const int64_t chunk = handle >> kSlotBits;
    const uint32_t slot = handle & ((1u << kSlotBits) - 1);
    const bool is_chunk = chunk < num_chunks;
    const uint64_t word = is_chunk ? read_index(chunks + chunk) : 0;
    const int32_t dim = static_cast<int32_t>(word & ((1u << kDimBits) - 1));
    const int64_t offset = static_cast<int64_t>((word >> kDimBits) + slot * uint64_t(dim));
    if (!is_chunk || offset + dim > numbers) return {0, -1};
    return {offset, dim < width ? dim : width};
  }

  // What a lookup of the row reads first.
  const void* entry_of(int64_t row) const { return handles + row; }
};

// Packed rows that all have the full width: nothing needs to be read to find one.
struct FullRows {
  static constexpr bool kMayLackRows = false;
  static constexpr bool kIsIndexed = false;

  int64_t num_rows;
  int32_t width;

  VAREMB_HOST_DEVICE Row operator()(int64_t row) const { return {row * width, width}; }
};

// Either layout, told apart at run time. For kernels that work long on each row that they find:
// there a branch that all rows take alike costs less than twice as many kernels.
struct EitherRows {
  static constexpr bool kMayLackRows = true;

  PackedRows packed;
  PagedRows paged;
  bool is_paged;
  int64_t num_rows;
  int32_t width;

  EitherRows() = default;
  explicit EitherRows(const PackedRows& rows)
      : packed(rows), paged{}, is_paged(false), num_rows(rows.num_rows), width(rows.width) {}
  explicit EitherRows(const PagedRows& rows)
      : packed{}, paged(rows), is_paged(true), num_rows(rows.num_rows), width(rows.width) {}

  VAREMB_HOST_DEVICE Row operator()(int64_t row) const {
    return is_paged ? paged(row) : packed(row);
  }
  const void* entry_of(int64_t row) const {
    return is_paged ? paged.entry_of(row) : packed.entry_of(row);
  }
};

}  // namespace
}  // namespace varemb
