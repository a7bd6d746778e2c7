// Lookups in the order of their rows: a stable, parallel radix sort, so the result does not depend
// on the threads.
#pragma once

#include "bags.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

namespace varemb {
namespace {

// A row and the tag of a lookup of it, its position or its bag; 32 bits each, which check_rows and
// sort_lookups make sure of.
using Key = uint64_t;
inline int64_t row_of(Key key) { return static_cast<int64_t>(key >> 32); }
inline int64_t tag_of(Key key) { return static_cast<int64_t>(key & 0xffffffffu); }

struct SortedLookups {
  std::unique_ptr<Key[]> keys;
  int64_t count = 0;
};

constexpr int kDigitBits = 11;  // 2,048 counters stay in the first-level cache
constexpr int64_t kSortGrain = 8192;

inline int bits_for(int64_t rows) {
  int bits = 1;
  while (bits < 32 && (int64_t(1) << bits) < rows) ++bits;
  return bits;
}

// One stable pass over `bits` bits from `shift`. Chunk c of the input is counted and moved by one
// thread; digit-major, chunk-minor starts keep equal digits in input order.
inline void radix_pass(
    const Key* from,
    Key* to,
    int64_t count,
    int shift,
    int bits,
    int64_t chunks) {
  const int64_t digits = int64_t(1) << bits;
  const Key mask = static_cast<Key>(digits - 1);
  const int64_t chunk_size = (count + chunks - 1) / chunks;
  std::vector<int64_t> starts(static_cast<size_t>(chunks * digits), 0);
  torch::stable::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      int64_t* counts = starts.data() + c * digits;
      const int64_t last = std::min(count, (c + 1) * chunk_size);
      for (int64_t i = c * chunk_size; i < last; ++i) ++counts[(from[i] >> shift) & mask];
    }
  });
  int64_t start = 0;
  for (int64_t d = 0; d < digits; ++d) {
    for (int64_t c = 0; c < chunks; ++c) start += std::exchange(starts[c * digits + d], start);
  }
  torch::stable::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      int64_t* next = starts.data() + c * digits;
      const int64_t last = std::min(count, (c + 1) * chunk_size);
      for (int64_t i = c * chunk_size; i < last; ++i)
        to[next[(from[i] >> shift) & mask]++] = from[i];
    }
  });
}

// The keys of lookups in the order of their positions, tagged with the bags if there are any, else
// with the positions. Lookups of padding_idx get the row num_rows, which sorts them last; returns
// how many others there are.
template <typename Index>
int64_t make_keys(
    const char* op,
    const Index* indices,
    int64_t lookups,
    int64_t num_rows,
    int64_t padding_idx,
    const Bags<Index>* bags,
    Key* keys) {
  std::atomic<int64_t> kept{0};
  const auto make = [&](int64_t begin, int64_t end, const auto& tag, BadIndex& bad) -> int64_t {
    int64_t padded = 0;
    for (int64_t p = begin; p < end; ++p) {
      const int64_t row = static_cast<int64_t>(indices[p]);
      if (__builtin_expect(static_cast<uint64_t>(row) >= static_cast<uint64_t>(num_rows), 0))
        bad.keep_first({p, row});
      const bool is_padding = row == padding_idx;
      padded += is_padding;
      keys[p] = static_cast<Key>(is_padding ? num_rows : row) << 32 | static_cast<Key>(tag(p));
    }
    return end - begin - padded;
  };
  BadIndex bad;
  if (bags == nullptr) {
    bad = parallel_lookup(lookups, kSortGrain, [&](int64_t begin, int64_t end) {
      BadIndex first;
      kept += make(begin, end, [](int64_t p) { return p; }, first);
      return first;
    });
  } else {
    bad = parallel_lookup(bags->bags, 512, [&](int64_t begin, int64_t end) {
      BadIndex first;
      int64_t own = 0;  // an atomic addition per bag would be felt
      for (int64_t bag = begin; bag < end; ++bag) {
        own += make(bags->begin(bag), bags->end(bag), [=](int64_t) { return bag; }, first);
      }
      kept += own;
      return first;
    });
  }
  bad.raise(op, num_rows);
  return kept;
}

// Lookups sorted by row, equal rows in the order of their positions; lookups of padding_idx are
// left out. `bags`: what to tag them with instead of their positions, or null.
template <typename Index>
SortedLookups sort_lookups(
    const char* op,
    const Index* indices,
    int64_t lookups,
    int64_t num_rows,
    int64_t padding_idx,
    const Bags<Index>* bags) {
  const int64_t tags = bags == nullptr ? lookups : std::max(lookups, bags->bags);
  check(
      tags <= std::numeric_limits<uint32_t>::max(), op,
      ": at most 2^32 - 1 indices and bags in a call, got ", tags);
  SortedLookups sorted;
  sorted.keys.reset(new Key[static_cast<size_t>(lookups)]);
  sorted.count = make_keys(op, indices, lookups, num_rows, padding_idx, bags, sorted.keys.get());
  const int bits = bits_for(num_rows + 1);
  const int passes = (bits + kDigitBits - 1) / kDigitBits;
  const int pass_bits = (bits + passes - 1) / passes;
  const int64_t threads = static_cast<int64_t>(torch::stable::get_num_threads());
  const int64_t chunks = std::clamp<int64_t>(lookups / kSortGrain, 1, threads);
  std::unique_ptr<Key[]> other(new Key[static_cast<size_t>(lookups)]);
  for (int pass = 0; pass < passes; ++pass) {
    radix_pass(sorted.keys.get(), other.get(), lookups, 32 + pass * pass_bits, pass_bits, chunks);
    sorted.keys.swap(other);
  }
  return sorted;
}

}  // namespace
}  // namespace varemb
