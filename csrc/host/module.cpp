// varemb._host: host code that has nothing to do with tensors on a device, numpy in and out.
#include "bpr_sampler.h"
#include "id_map.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <tuple>
#include <vector>

namespace py = pybind11;

namespace {

using varemb::BprSampler;
using varemb::IdMap;
// c_style without forcecast: another dtype or layout is refused, never copied.
using Ids = py::array_t<int64_t, py::array::c_style>;

int64_t checked_length(const Ids& ids, const char* operation) {
  if (ids.ndim() != 1) {
    throw py::value_error(
        std::string(operation) + ": ids must be 1-D, got " + std::to_string(ids.ndim()) + "-D");
  }
  return ids.shape(0);
}

Ids rows_of(IdMap& map, const Ids& ids, bool grow, int64_t threads) {
  const int64_t count = checked_length(ids, "IdMap.rows");
  Ids rows(count);
  const int64_t* in = ids.data();
  int64_t* out = rows.mutable_data();
  int64_t bad;
  {
    const py::gil_scoped_release release;
    bad = map.find(in, count, out, threads);
    if (grow && bad < 0) map.add(in, count, out);
  }
  if (bad >= 0) {
    const auto id = in[bad];
    throw py::value_error(
        "IdMap.rows: ids must lie in [0, 2^63 - 1], got " + std::to_string(id) + " (as uint64 " +
        std::to_string(static_cast<uint64_t>(id)) + ") at position " + std::to_string(bad));
  }
  return rows;
}

Ids ids_of(const IdMap& map) {
  const int64_t count = map.size();
  Ids ids(count);
  int64_t* out = ids.mutable_data();
  const py::gil_scoped_release release;
  map.copy_ids(out, count);
  return ids;
}

std::span<const int64_t> as_span(const Ids& array) {
  return {array.data(), static_cast<size_t>(array.size())};
}

std::unique_ptr<BprSampler> make_sampler(
    const Ids& users,
    const Ids& items,
    const Ids& seen_users,
    const Ids& seen_items,
    int64_t num_users,
    int64_t num_items,
    const Ids& allowed,
    uint64_t seed,
    bool is_per_user) {
  const varemb::Pairs pairs{as_span(users), as_span(items)};
  const varemb::Pairs also_seen{as_span(seen_users), as_span(seen_items)};
  const auto chosen = as_span(allowed);
  const py::gil_scoped_release release;
  return std::make_unique<BprSampler>(
      pairs, also_seen, num_users, num_items, chosen, seed, is_per_user);
}

std::tuple<Ids, Ids, Ids> sample(
    const BprSampler& sampler,
    int64_t first,
    int64_t count,
    int64_t threads) {
  Ids users(count), positives(count), negatives(count);
  int64_t* out[] = {users.mutable_data(), positives.mutable_data(), negatives.mutable_data()};
  {
    const py::gil_scoped_release release;
    sampler.sample(first, count, out[0], out[1], out[2], threads);
  }
  return {users, positives, negatives};
}

}  // namespace

PYBIND11_MODULE(_host, module) {
  module.doc() = "Host code of varemb; use varemb.id_map and varemb.bpr_sampler.";
  module.def("mix", py::vectorize(&varemb::mix), py::arg("numbers"), "The id map's hash.");
  py::class_<IdMap>(module, "IdMap")
      .def(py::init<int64_t>(), py::arg("capacity"))
      .def("__len__", &IdMap::size)
      .def_property_readonly("nbytes", &IdMap::nbytes)
      .def(
          "rows", &rows_of, py::arg("ids").noconvert(), py::arg("grow"), py::kw_only(),
          py::arg("threads"))
      .def("ids", &ids_of);
  py::class_<BprSampler>(module, "BprSampler")
      .def(
          py::init(&make_sampler), py::kw_only(), py::arg("users").noconvert(),
          py::arg("items").noconvert(), py::arg("seen_users").noconvert(),
          py::arg("seen_items").noconvert(), py::arg("num_users"), py::arg("num_items"),
          py::arg("allowed").noconvert(), py::arg("seed"), py::arg("is_per_user"))
      .def(
          "sample", &sample, py::arg("first"), py::arg("count"), py::kw_only(), py::arg("threads"));
}
