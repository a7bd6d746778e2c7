// Rows moved to other places and other dims: bytes are copied, so that every dtype is one loop. The
// moves are checked before anything is written; their targets do not overlap, so threads write
// disjoint memory.
#include "dispatch.h"

#include <cstring>

namespace varemb {
namespace {

constexpr int64_t kMovesAtATime = 1024;

struct Move {
  int64_t source;  // of the first number in values
  int64_t target;  // of the first number in out
  int64_t kept;    // numbers copied
  int64_t dim;     // numbers written; zeros beyond kept

  bool is_inside(int64_t numbers, int64_t written) const {
    return kept >= 0 && dim >= kept && source >= 0 && target >= 0 && source <= numbers - kept &&
           target <= written - dim;
  }
};

int64_t number_bytes(const char* op, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Byte:
    case ScalarType::Char:
    case ScalarType::Bool:
    case ScalarType::Float8_e4m3fn:
    case ScalarType::Float8_e5m2: return 1;
    case ScalarType::Half:
    case ScalarType::BFloat16:
    case ScalarType::Short:
    case ScalarType::UInt16: return 2;
    case ScalarType::Float:
    case ScalarType::Int:
    case ScalarType::UInt32: return 4;
    case ScalarType::Double:
    case ScalarType::Long:
    case ScalarType::UInt64: return 8;
    default:
      fail(
          op, ": values must have numbers of 1, 2, 4 or 8 bytes, got ",
          torch::headeronly::toString(tensor.scalar_type()));
  }
}

void repack_(
    const Tensor& out,      // [new E], changed
    const Tensor& values,   // [E]
    const Tensor& moves) {  // [M, 4]
  const char* op = "repack";
  check_vector(op, "out", out);
  check_vector(op, "values", values);
  check(out.scalar_type() == values.scalar_type(), op, ": out must have the dtype of values");
  check(
      moves.scalar_type() == ScalarType::Long && moves.dim() == 2 && moves.size(1) == 4 &&
          moves.is_contiguous(),
      op, ": moves must be a contiguous int64 tensor [M, 4]: source, target, kept, dim");
  const int64_t bytes = number_bytes(op, values);
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
