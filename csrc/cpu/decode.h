// Where the rows of a call are, decoded ahead of use.
#pragma once

#include "../checks.h"
#include "../rows.h"

#include <algorithm>
#include <cstdint>
#include <vector>

namespace varemb {
namespace {

constexpr int64_t kCacheLine = 64;
constexpr int64_t kRowsAhead =
    32;  // rows between the request for memory and its use, about 200 ns of work
constexpr int64_t kBlocksAhead = 64;  // the same for index blocks

// Numbers to read, and how many of them.
template <typename T>
struct Source {
  const T* numbers;
  int64_t dim;
};

// Asks for a cache line. Written as assembly because gcc takes a function that only prefetches for
// one without effect and drops the calls.
inline void prefetch(const void* address) {
#if defined(__x86_64__)
  asm volatile("prefetcht0 %0" : : "m"(*static_cast<const char*>(address)));
#else
  __builtin_prefetch(address);
#endif
}

// Rows are not aligned to cache lines: the last byte may lie in one line more.
inline void prefetch_bytes(const void* from, int64_t bytes) {
  const char* line = static_cast<const char*>(from);
  for (int64_t at = 0; at < bytes; at += kCacheLine) prefetch(line + at);
  if (bytes > 0) prefetch(line + bytes - 1);
}

// How many numbers of a row one lookup may read: all, the same for every lookup, or one limit per
// lookup.
struct Limit {
  const int32_t* values = nullptr;  // [1] or [L]
  int64_t stride = 0;

  static Limit of(const std::optional<Tensor>& limit) {
    if (!limit) return {};
    return {static_cast<const int32_t*>(limit->const_data_ptr()), limit->size(0) == 1 ? 0 : 1};
  }
  int32_t apply(int32_t dim, int64_t position) const {
    if (values == nullptr) return dim;
    const int32_t limit = values[position * stride];
    return limit < 0 ? 0 : limit < dim ? limit : dim;
  }
};

// What a call reads.
template <typename T, typename Index, typename Rows>
struct Call {
  const T* values;  // [E]
  Rows rows;
  const Index* indices;
  Limit limit;
  int64_t padding_idx = -1;  // read as an empty row
};

// Decodes the rows of positions [begin, end) in order, kRowsAhead of them before they are used, and
// asks for their numbers: decoding and adding overlap with the memory's latency. The decoded rows
// stand in a buffer that a caller may read again until it starts the next one.
template <typename T, typename Index, typename Rows>
class Ahead {
 public:
  Ahead(const Call<T, Index, Rows>& call, int64_t begin, int64_t end)
      : call_(call), next_(begin), end_(end) {
    for (int64_t p = begin; p < std::min(begin + kBlocksAhead, end); ++p) prefetch_block(p);
    start(0);
    for (int64_t i = 0; i < kRowsAhead; ++i) step();
  }

  // Begins a buffer for `count` rows; those decoded ahead move to its front. Returns its first row.
  const Source<T>* start(int64_t count) {
    const int64_t carried = filled_ - used_;
    buffer_.resize(static_cast<size_t>(std::max<int64_t>(filled_, count + kRowsAhead)));
    std::copy(buffer_.begin() + used_, buffer_.begin() + filled_, buffer_.begin());
    used_ = count;
    filled_ = carried;
    return buffer_.data();
  }

  // Decodes one more row; called once for every row that is used. Inlined, because a call would
  // make the loop around it put its sums on the stack (see add_row).
  [[gnu::always_inline]] void step() {
    if (next_ >= end_) return;
    if (next_ + kBlocksAhead < end_) prefetch_block(next_ + kBlocksAhead);
    Source<T>& out = buffer_[filled_++];
    out = decode(next_++);
    prefetch_bytes(out.numbers, out.dim * static_cast<int64_t>(sizeof(T)));
  }

  const BadIndex& bad() const { return bad_; }

 private:
  [[gnu::always_inline]] void prefetch_block(int64_t position) const {
    const uint64_t row = static_cast<uint64_t>(static_cast<int64_t>(call_.indices[position]));
    if (row < static_cast<uint64_t>(call_.rows.num_rows))
      prefetch(call_.rows.block_of(static_cast<int64_t>(row)));
  }

  [[gnu::always_inline]] Source<T> decode(int64_t position) {
    const int64_t row = static_cast<int64_t>(call_.indices[position]);
    if (__builtin_expect(
            static_cast<uint64_t>(row) >= static_cast<uint64_t>(call_.rows.num_rows), 0)) {
      if (position < bad_.position) bad_ = {position, row};
      return {call_.values, 0};
    }
    const Row where = call_.rows(row);
    const int64_t dim = row == call_.padding_idx ? 0 : call_.limit.apply(where.dim, position);
    return {call_.values + where.offset, dim};
  }

  const Call<T, Index, Rows>& call_;
  int64_t next_;  // position to decode
  int64_t end_;
  int64_t used_ = 0;    // rows of the buffer that its caller uses
  int64_t filled_ = 0;  // rows of the buffer that are decoded
  BadIndex bad_;
  std::vector<Source<T>> buffer_;
};

}  // namespace
}  // namespace varemb
