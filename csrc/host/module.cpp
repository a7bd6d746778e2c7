// varemb._host: host code that has nothing to do with tensors on a device, numpy in and out.
#include "id_map.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

namespace py = pybind11;

namespace {

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

}  // namespace

PYBIND11_MODULE(_host, module) {
  module.doc() = "Host code of varemb; use varemb.id_map and varemb.bpr_sampler.";
  py::class_<IdMap>(module, "IdMap")
      .def(py::init<int64_t>(), py::arg("capacity"))
      .def("__len__", &IdMap::size)
      .def_property_readonly("nbytes", &IdMap::nbytes)
      .def(
          "rows", &rows_of, py::arg("ids").noconvert(), py::arg("grow"), py::kw_only(),
          py::arg("threads"))
      .def("ids", &ids_of);
}
