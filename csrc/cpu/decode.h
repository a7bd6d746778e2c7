// Where the rows of a call are, decoded ahead of use.
#pragma once

#include "dispatch.h"

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

namespace varemb {
namespace {

constexpr int64_t kCacheLine = 64;
constexpr int64_t kRowsAhead =
    32;  // rows between the request for memory and its use, about 200 ns of work
constexpr int64_t kEntriesAhead = 64;  // the same for entries of the index

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

// What a call reads.
template <typename T, typename IndexType, typename RowsType>
struct Call {
  using Index = IndexType;
  using Rows = RowsType;

  const T* values;  // [E]
  Rows rows;
  const Index* indices;
  Limit limit;
  int64_t padding_idx = -1;  // read as an empty row
};

// Whether all rows of a packed table have the full width: none can have more, so the numbers of all
// of them tell. A granule that does not divide the width could round some up beyond it.
inline bool are_full(const RowsArgs& args) {
  return !is_paged(args.index) && args.width % args.granule == 0 &&
         args.numbers == args.num_rows * args.width;
}

// Calls body(Call) for the dtype of the indices and the layout of the rows.
template <typename T, typename Body>
void dispatch_calls(
    const Tensor& values,
    const RowsArgs& where,
    const Tensor& indices,
    const std::optional<Tensor>& limit,
    int64_t padding_idx,
    const Body& body) {
  dispatch_index(indices, [&](auto index_type) {
    using Index = typename decltype(index_type)::type;
    const auto call = [&](const auto& rows) {
      using Rows = std::decay_t<decltype(rows)>;
      body(
          Call<T, Index, Rows>{
              data<T>(values), rows, data<Index>(indices), limit_of(limit), padding_idx});
    };
    if (are_full(where)) return call(FullRows{where.num_rows, static_cast<int32_t>(where.width)});
    dispatch_layout(where, call);
  });
}

// Decodes the rows of positions [begin, end) in order, kRowsAhead of them before they are used, and
// asks for their numbers: decoding and adding overlap with the memory's latency. The decoded rows
// stand in a buffer that a caller may read again until it starts the next one.
template <typename T, typename Index, typename Rows>
class Ahead {
 public:
  Ahead(const Call<T, Index, Rows>& call, int64_t begin, int64_t end)
      : call_(call), next_(begin), end_(end) {
    for (int64_t p = begin; p < std::min(begin + kEntriesAhead, end); ++p) prefetch_entry(p);
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
    if (next_ + kEntriesAhead < end_) prefetch_entry(next_ + kEntriesAhead);
    Source<T>& out = buffer_[filled_++];
    out = decode(next_++);
    prefetch_bytes(out.numbers, out.dim * static_cast<int64_t>(sizeof(T)));
  }

  const BadIndex& bad() const { return bad_; }

 private:
  [[gnu::always_inline]] void prefetch_entry(int64_t position) const {
    if constexpr (Rows::kIsIndexed) {
      const uint64_t row = static_cast<uint64_t>(static_cast<int64_t>(call_.indices[position]));
      if (row < static_cast<uint64_t>(call_.rows.num_rows))
        prefetch(call_.rows.entry_of(static_cast<int64_t>(row)));
    }
  }

  [[gnu::always_inline]] Source<T> decode(int64_t position) {
    const int64_t row = static_cast<int64_t>(call_.indices[position]);
    if (__builtin_expect(
            static_cast<uint64_t>(row) >= static_cast<uint64_t>(call_.rows.num_rows), 0))
      return refuse(position, row);
    const Row where = call_.rows(row);
    if (Rows::kMayLackRows && __builtin_expect(where.dim < 0, 0)) return refuse(position, row);
    const int64_t dim = row == call_.padding_idx ? 0 : call_.limit.apply(where.dim, position);
    return {call_.values + where.offset, dim};
  }

  Source<T> refuse(int64_t position, int64_t row) {
    if (position < bad_.position) bad_ = {position, row};
    return {call_.values, 0};
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
