// The gradient of a call with one entry per distinct row: as a flat dense tensor, or as its touched
// numbers alone.
#include "coalesce.cuh"
#include "gradient.h"

namespace varemb {
namespace {

Tensor coalesce_dense(
    const Tensor& grad,
    const Tensor& index,
    const Tensor& indices,
    const std::optional<Tensor>& offsets,
    const std::optional<Tensor>& per_sample_weights,
    const std::optional<Tensor>& limit,
    const std::optional<Tensor>& winners,
    int64_t num_rows,
    int64_t granule,
    int64_t mode,
    int64_t padding_idx,
    bool include_last_offset,
    int64_t numbers) {
  const GradientArgs args{
      grad,    index,    indices, offsets, per_sample_weights, limit,
      winners, num_rows, granule, mode,    padding_idx,        include_last_offset};
  const char* op = "coalesce_dense";
  check_gradient(op, args, numbers);
  const Device device(op, grad, index, indices, offsets, per_sample_weights, limit, winners);
  Tensor out = torch::stable::new_zeros(grad, {numbers});
  dispatch_values(op, grad, [&](auto value_type) {
    using T = typename decltype(value_type)::type;
    const Gradient<T> gradient(device, args, numbers);
    gradient.sum_into(DenseSink<T>{mutable_data<T>(out)});
  });
  return out;
}

// Waits for the device: how many numbers were touched decides the size of the result.
std::tuple<Tensor, Tensor> coalesce(
    const Tensor& grad,
    const Tensor& index,
    const Tensor& indices,
    const std::optional<Tensor>& offsets,
    const std::optional<Tensor>& per_sample_weights,
    const std::optional<Tensor>& limit,
    const std::optional<Tensor>& winners,
    int64_t num_rows,
    int64_t granule,
    int64_t mode,
    int64_t padding_idx,
    bool include_last_offset,
    int64_t numbers) {
  const GradientArgs args{
      grad,    index,    indices, offsets, per_sample_weights, limit,
      winners, num_rows, granule, mode,    padding_idx,        include_last_offset};
  const char* op = "coalesce";
  check_gradient(op, args, numbers);
  check_packed(op, index);
  const Device device(op, grad, index, indices, offsets, per_sample_weights, limit, winners);
  std::optional<Tensor> positions, sums;
  dispatch_values(op, grad, [&](auto value_type) {
    using T = typename decltype(value_type)::type;
    const Gradient<T> gradient(device, args, numbers);
    const int64_t entries = gradient.capacity() + 1;
    const Tensor dims = device.scratch<int64_t>(entries);
    const Tensor first = device.scratch<int64_t>(entries);
    check_cuda(
        op, cudaMemsetAsync(
                mutable_data<int64_t>(dims), 0, static_cast<size_t>(entries) * sizeof(int64_t),
                device.stream));
    if (gradient.call().lookups > 0) {
      device.launch(
          run_dim_kernel<T>, device.blocks<1>(entries), gradient.call(), gradient.runs(),
          mutable_data<int64_t>(dims));
    }
    device.sum_before(data<int64_t>(dims), mutable_data<int64_t>(first), entries);
    int64_t touched = 0;
    check_cuda(
        op, cudaMemcpyAsync(
                &touched, data<int64_t>(first) + entries - 1, sizeof(touched),
                cudaMemcpyDeviceToHost, device.stream));
    check_cuda(op, cudaStreamSynchronize(device.stream));
    positions = torch::stable::new_empty(grad, {touched}, ScalarType::Long);
    sums = torch::stable::new_empty(grad, {touched});
    gradient.sum_into(
        SparseSink<T>{
            data<int64_t>(first), mutable_data<int64_t>(*positions), mutable_data<T>(*sums)});
  });
  return {*positions, *sums};
}

STABLE_TORCH_LIBRARY_IMPL(varemb, VAREMB_DEVICE_KEY, m) {
  m.impl("coalesce_dense", TORCH_BOX(&coalesce_dense));
  m.impl("coalesce", TORCH_BOX(&coalesce));
}

}  // namespace
}  // namespace varemb
