// Rows of different dims as one zero-padded block: contract, launch, registration.
#include "lookup.cuh"
#include "runtime.cuh"

#include <type_traits>

namespace varemb {
namespace {

constexpr int kRowsInFlight = 4;
constexpr int64_t kNarrowBytes = 32;  // rows up to here need no more than two lanes

template <typename T, int kLanes, typename Rows>
void launch_lookup(
    const Device& device,
    const Tensor& values,
    const Table<Rows>& table,
    const Tensor& indices,
    const std::optional<Tensor>& limit,
    const Tensor& out) {
  const int64_t lookups = out.size(0);
  const int64_t groups = (lookups + kRowsInFlight - 1) / kRowsInFlight;
  device.launch(
      lookup_forward_kernel<T, Rows, kLanes, kRowsInFlight>, device.blocks<kLanes>(groups),
      data<T>(values), table, integers_of(indices), limit_of(limit), lookups, mutable_data<T>(out));
}

Tensor lookup(
    const Tensor& values,                // [E]
    const Tensor& index,                 // [blocks, 4] or [words]
    const Tensor& indices,               // [L]
    const std::optional<Tensor>& limit,  // [1] or [L]
    int64_t num_rows,
    int64_t width,
    int64_t granule) {
  const char* op = "lookup";
  const RowsArgs where{index, num_rows, width, granule, values.size(0)};
  check_lookup(op, values, indices, limit, where);
  const int64_t lookups = indices.size(0);
  const Device device(op, values, index, indices, limit);
  Tensor out = torch::stable::new_empty(values, {lookups, width});
  if (lookups == 0 || width == 0) return out;
  // The kernel reads row 0 in the place of one that is outside.
  if (num_rows == 0) fail<std::out_of_range>(op, ": indices into a table without rows");
  dispatch_values(op, values, [&](auto value_type) {
    using T = typename decltype(value_type)::type;
    dispatch_layout(where, [&](const auto& rows) {
      const Table<std::decay_t<decltype(rows)>> table{rows, values.size(0)};
      if (width * static_cast<int64_t>(sizeof(T)) <= kNarrowBytes)
        launch_lookup<T, 2>(device, values, table, indices, limit, out);
      else
        launch_lookup<T, 8>(device, values, table, indices, limit, out);
    });
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(varemb, VAREMB_DEVICE_KEY, m) { m.impl("lookup", TORCH_BOX(&lookup)); }

}  // namespace
}  // namespace varemb
