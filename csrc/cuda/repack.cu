// Rows moved to other places and other dims: contract, launch, registration.
#include "repack.cuh"
#include "runtime.cuh"

namespace varemb {
namespace {

constexpr int kMoveLanes = 8;      // a row of few numbers still fills them
constexpr int kNumbersAtOnce = 4;  // of a lane

// Calls body(TypeTag<T>) for the unsigned integer of a number's size.
template <typename Body>
void dispatch_size(const char* op, const Tensor& tensor, const Body& body) {
  switch (tensor.element_size()) {
    case 1: return body(TypeTag<uint8_t>{});
    case 2: return body(TypeTag<uint16_t>{});
    case 4: return body(TypeTag<uint32_t>{});
    case 8: return body(TypeTag<uint64_t>{});
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
  const Device device(op, out, values, moves);
  const int64_t count = moves.size(0);
  if (count == 0) return;
  dispatch_size(op, values, [&](auto number_type) {
    using T = typename decltype(number_type)::type;
    device.launch(
        repack_kernel<T, kMoveLanes, kNumbersAtOnce>, device.blocks<kMoveLanes>(count),
        data<T>(values), data<Move>(moves), count, values.size(0), out.size(0),
        mutable_data<T>(out));
  });
}

STABLE_TORCH_LIBRARY_IMPL(varemb, VAREMB_DEVICE_KEY, m) { m.impl("repack_", TORCH_BOX(&repack_)); }

}  // namespace
}  // namespace varemb
