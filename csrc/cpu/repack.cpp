// Rows moved to other places and other dims: bytes are copied, so that every dtype is one loop. The
// moves are checked before anything is written; their targets do not overlap, so threads write
// disjoint memory.
#include "../move.h"
#include "dispatch.h"

#include <cstring>

namespace varemb {
namespace {

constexpr int64_t kMovesAtATime = 1024;

void repack_(
    const Tensor& out,      // [new E], changed
    const Tensor& values,   // [E]
    const Tensor& moves) {  // [M, 4]
  const char* op = "repack";
  const int64_t bytes = check_repack(op, out, values, moves);
  const int64_t count = moves.size(0);
  if (count == 0) return;
  const Move* const plan = reinterpret_cast<const Move*>(data<int64_t>(moves));
  const int64_t numbers = values.size(0);
  const int64_t written = out.size(0);
  const BadIndex bad = parallel_lookup(count, kMovesAtATime, [&](int64_t begin, int64_t end) {
    BadIndex first;
    for (int64_t m = begin; m < end; ++m) {
      if (!plan[m].is_inside(numbers, written)) return BadIndex{m, 0};
    }
    return first;
  });
  if (bad.position < count) {
    const Move& move = plan[bad.position];
    fail<std::out_of_range>(
        op, ": move ", bad.position, " leaves the tensors of ", numbers, " and ", written,
        " numbers: source, target, kept, dim are ", move.source, ", ", move.target, ", ", move.kept,
        ", ", move.dim);
  }
  const char* const from = static_cast<const char*>(values.const_data_ptr());
  char* const to = static_cast<char*>(out.mutable_data_ptr());
  torch::stable::parallel_for(0, count, kMovesAtATime, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      const Move move = plan[m];
      char* const target = to + move.target * bytes;
      // A row may move within one buffer to a place that overlaps its own.
      std::memmove(target, from + move.source * bytes, static_cast<size_t>(move.kept * bytes));
      std::memset(
          target + move.kept * bytes, 0, static_cast<size_t>((move.dim - move.kept) * bytes));
    }
  });
}

STABLE_TORCH_LIBRARY_IMPL(varemb, CPU, m) { m.impl("repack_", TORCH_BOX(&repack_)); }

}  // namespace
}  // namespace varemb
