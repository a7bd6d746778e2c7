// Rows moved to other places and other dims: contract, launch, registration.
#include "repack.cuh"
#include "runtime.cuh"

namespace varemb {
namespace {

constexpr int kMoveLanes = 8;      // a row of few numbers still fills them
constexpr int kNumbersAtOnce = 4;  // of a lane

// Calls body(TypeTag<T>) for the unsigned integer of so many bytes.
template <typename Body>
void dispatch_bytes(int64_t bytes, const Body& body) {
  switch (bytes) {
    case 1: return body(TypeTag<uint8_t>{});
    case 2: return body(TypeTag<uint16_t>{});
    case 4: return body(TypeTag<uint32_t>{});
    default: return body(TypeTag<uint64_t>{});
  }
}

void repack_(
    const Tensor& out,      // [new E], changed
    const Tensor& values,   // [E]
    const Tensor& moves) {  // [M, 4]
  const char* op = "repack";
  const int64_t bytes = check_repack(op, out, values, moves);
  const Device device(op, out, values, moves);
  const int64_t count = moves.size(0);
  if (count == 0) return;
  dispatch_bytes(bytes, [&](auto number_type) {
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
