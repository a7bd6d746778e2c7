// Rows of different dims times the matrix of their group: contract, tiles, launch, registration.
#include "lookup_linear.cuh"
#include "runtime.cuh"

#include <tuple>

namespace varemb {
namespace {

constexpr int64_t kBlocksAtOnce = 1024;  // enough to keep any GPU busy
constexpr int64_t kFewestLookups = 256;  // of a part, so that adding the parts stays cheap

constexpr int64_t divide_up(int64_t number, int64_t by) { return (number + by - 1) / by; }

template <typename T>
Projected<T> projected(const char* op, const LinearArgs& args) {
  const auto& [values, indices, groups, weight, bias, rows] = args;
  const int64_t lookups = indices.size(0);
  check_lookups(op, lookups);
  check(
      groups.size(0) * groups.size(1) <= kMost32, op,
      ": at most 2^31 - 1 pairs of a field and a dim, got ", groups.size(0) * groups.size(1));
  return {data<T>(values), table_of(rows),  integers_of(indices), data<int64_t>(groups),
          nullptr,         data<T>(weight), data<T>(bias),        lookups,
          groups.size(0),  weight.size(0),  bias.size(0),         weight.size(1)};
}

// A call's lookups sorted by cell and cut into tiles; how many tiles there are, only the device
// knows.
struct Tiles {
  Tensor offsets;  // of the rows, int64 [L]
  Tensor sorted;   // positions, int32 [L]
  Tensor spans;    // Span [most]
  Tensor before;   // tiles of the cells before, int64 [cells + 1]
  int64_t cells;
  int64_t most;

  const int64_t* count() const { return data<int64_t>(before) + cells; }
};

// Also gives the call the rows' offsets.
template <typename T>
Tiles cut_tiles(const Device& device, Projected<T>& call) {
  const int64_t lookups = call.lookups;
  const int64_t cells = call.fields * (call.table.rows.width + 1);
  const int64_t most = lookups / kTileRows + std::min(cells, lookups);
  const Tensor keys = device.scratch<uint32_t>(lookups);
  const Tensor sorted_keys = device.scratch<uint32_t>(lookups);
  const Tensor positions = device.scratch<int32_t>(lookups);
  const Tensor starts = device.scratch<int64_t>(cells + 1);
  const Tensor counts = device.scratch<int64_t>(cells + 1);
  const Tiles tiles{
      device.scratch<int64_t>(lookups),
      device.scratch<int32_t>(lookups),
      device.scratch<Span>(most),
      device.scratch<int64_t>(cells + 1),
      cells,
      most};
  device.launch(
      cell_kernel<T>, device.blocks<1>(lookups), call, mutable_data<uint32_t>(keys),
      mutable_data<int32_t>(positions), mutable_data<int64_t>(tiles.offsets));
  call.offsets = data<int64_t>(tiles.offsets);
  device.sort_pairs(
      data<uint32_t>(keys), mutable_data<uint32_t>(sorted_keys), data<int32_t>(positions),
      mutable_data<int32_t>(tiles.sorted), lookups, static_cast<uint32_t>(cells - 1));
  device.launch(
      tile_count_kernel, device.blocks<1>(cells + 1), data<uint32_t>(sorted_keys), lookups, cells,
      mutable_data<int64_t>(starts), mutable_data<int64_t>(counts));
  device.sum_before(data<int64_t>(counts), mutable_data<int64_t>(tiles.before), cells + 1);
  device.launch(
      tile_kernel, device.blocks<1>(most), data<int64_t>(starts), data<int64_t>(tiles.before),
      cells, most, mutable_data<Span>(tiles.spans));
  return tiles;
}

// The gradient of the weight, or of the bias.
template <bool kIsBias, typename T>
void weights_backward(
    const Device& device,
    const Projected<T>& call,
    const Tiles& tiles,
    const T* grad,
    const Tensor& out) {  // [S, O] or [C, O]
  const int64_t rows = out.size(0);
  const int64_t numbers = rows * call.outputs;
  if (numbers == 0) return;
  const int64_t blocks = divide_up(rows, kTileRows) * divide_up(call.outputs, kTileColumns);
  // Few blocks share the lookups, so that more can work.
  const int64_t parts =
      std::clamp<int64_t>(kBlocksAtOnce / blocks, 1, divide_up(call.lookups, kFewestLookups));
  const Tensor sums = device.scratch<WideOf<T>>(parts * numbers);
  device.launch(
      lookup_linear_weights_backward_kernel<T, kIsBias>, device.blocks<kThreads>(parts * blocks),
      call, grad, data<int32_t>(tiles.sorted), data<Span>(tiles.spans), tiles.count(), parts, rows,
      mutable_data<WideOf<T>>(sums));
  device.launch(
      sum_parts_kernel<T>, device.blocks<1>(numbers), data<WideOf<T>>(sums), parts, numbers,
      mutable_data<T>(out));
}

Tensor lookup_linear(
    const Tensor& values,   // [E]
    const Tensor& index,    // [blocks, 4] or [words]
    const Tensor& indices,  // [L]
    const Tensor& groups,   // [F, D + 1, 2]
    const Tensor& weight,   // [S, O]
    const Tensor& bias,     // [C, O]
    int64_t num_rows,
    int64_t width,
    int64_t granule) {
  const char* op = "lookup_linear";
  const LinearArgs args{values, indices, groups,
                        weight, bias,    {index, num_rows, width, granule, values.size(0)}};
  check_linear(op, args);
  Tensor out;
  dispatch_values(op, values, [&](auto value_type) {
    using T = typename decltype(value_type)::type;
    auto call = projected<T>(op, args);
    const Device device(op, values, index, indices, groups, weight, bias);
    const int64_t shape[] = {call.lookups, call.outputs};  // nvcc garbles a braced argument here
    out = torch::stable::new_empty(values, shape);
    if (call.lookups == 0 || call.outputs == 0) return;
    const Tiles tiles = cut_tiles(device, call);
    device.launch(
        lookup_linear_forward_kernel<T>,
        device.blocks<kThreads>(tiles.most * divide_up(call.outputs, kTileColumns)), call,
        data<int32_t>(tiles.sorted), data<Span>(tiles.spans), tiles.most, mutable_data<T>(out));
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> lookup_linear_backward(
    const Tensor& grad,     // [L, O]
    const Tensor& values,   // [E]
    const Tensor& index,    // [blocks, 4] or [words]
    const Tensor& indices,  // [L]
    const Tensor& groups,   // [F, D + 1, 2]
    const Tensor& weight,   // [S, O]
    const Tensor& bias,     // [C, O]
    int64_t num_rows,
    int64_t width,
    int64_t granule) {
  const char* op = "lookup_linear_backward";
  const LinearArgs args{values, indices, groups,
                        weight, bias,    {index, num_rows, width, granule, values.size(0)}};
  check_linear(op, args);
  check_linear_grad(op, args, grad);
  Tensor rows_grad, weight_grad, bias_grad;
  dispatch_values(op, values, [&](auto value_type) {
    using T = typename decltype(value_type)::type;
    auto call = projected<T>(op, args);
    const Device device(op, values, grad, index, indices, groups, weight, bias);
    const int64_t rows_shape[] = {call.lookups, width};  // nvcc garbles braced arguments here
    const int64_t weight_shape[] = {call.matrix_rows, call.outputs};
    const int64_t bias_shape[] = {call.bias_rows, call.outputs};
    rows_grad = torch::stable::new_zeros(values, rows_shape);
    weight_grad = torch::stable::new_zeros(values, weight_shape);
    bias_grad = torch::stable::new_zeros(values, bias_shape);
    if (call.lookups == 0 || call.outputs == 0) return;
    const Tiles tiles = cut_tiles(device, call);
    if (width > 0) {
      device.launch(
          lookup_linear_rows_backward_kernel<T>,
          device.blocks<kThreads>(tiles.most * divide_up(width, kTileColumns)), call, data<T>(grad),
          data<int32_t>(tiles.sorted), data<Span>(tiles.spans), tiles.most,
          mutable_data<T>(rows_grad));
    }
    weights_backward<false>(device, call, tiles, data<T>(grad), weight_grad);
    weights_backward<true>(device, call, tiles, data<T>(grad), bias_grad);
  });
  return {rows_grad, weight_grad, bias_grad};
}

STABLE_TORCH_LIBRARY_IMPL(varemb, VAREMB_DEVICE_KEY, m) {
  m.impl("lookup_linear", TORCH_BOX(&lookup_linear));
  m.impl("lookup_linear_backward", TORCH_BOX(&lookup_linear_backward));
}

}  // namespace
}  // namespace varemb
