// The lookups of a call by the group that they belong to, a field and a dim: those of a group are
// multiplied by the same matrix.
#pragma once

#include "decode.h"

#include <utility>
#include <vector>

namespace varemb {
namespace {

// Lookups [begin, end) in the order of the groups: their rows times weight[matrix, matrix + dim)
// plus bias[bias].
struct Group {
  int64_t begin;
  int64_t end;
  int64_t matrix;
  int64_t bias;
  int64_t dim;
  int64_t at;  // dims of the groups before it
};

template <typename T>
struct Grouped {
  std::vector<Group> groups;
  std::vector<const T*> numbers;   // [L] of a lookup's row, by group
  std::vector<int64_t> positions;  // [L] of the lookup, ascending in a group
  int64_t dims = 0;                // of all groups together
};

// Stable: lookups of a group stay in order. groups [F, D + 1, 2]: for a field (the position modulo
// F) and a dim, the first matrix row and the bias row; -1 for none.
template <typename T>
Grouped<T> group_lookups(const char* op, const LinearArgs& args) {
  const int64_t lookups = args.indices.size(0);
  const int64_t fields = args.groups.size(0);
  const int64_t dims = args.groups.size(1);
  const int64_t* const table = data<int64_t>(args.groups);
  std::vector<Source<T>> rows(static_cast<size_t>(lookups));
  BadIndex bad;
  dispatch_calls<T>(args.values, args.rows, args.indices, {}, -1, [&](const auto& call) {
    using Lookups = std::decay_t<decltype(call)>;
    bad = parallel_lookup(lookups, 2048, [&](int64_t begin, int64_t end) {
      Ahead<T, typename Lookups::Index, typename Lookups::Rows> ahead(call, begin, end);
      const Source<T>* decoded = ahead.start(end - begin);
      for (int64_t l = begin; l < end; ++l) {
        ahead.step();
        rows[l] = decoded[l - begin];
      }
      return ahead.bad();
    });
  });
  bad.raise(op, args.rows.num_rows);
  std::vector<int64_t> next(static_cast<size_t>(fields * dims), 0);  // counts, then places
  for (int64_t l = 0; l < lookups; ++l) ++next[l % fields * dims + rows[l].dim];
  Grouped<T> out;
  int64_t begin = 0;
  for (int64_t kind = 0; kind < fields * dims; ++kind) {
    const int64_t count = std::exchange(next[kind], begin);
    if (count == 0) continue;
    const int64_t dim = kind % dims;
    const int64_t matrix = table[2 * kind];
    const int64_t bias = table[2 * kind + 1];
    check(
        matrix >= 0 && matrix + dim <= args.weight.size(0) && bias >= 0 && bias < args.bias.size(0),
        op, ": no matrix for rows of dim ", dim, " in field ", kind / dims);
    out.groups.push_back({begin, begin + count, matrix, bias, dim, out.dims});
    begin += count;
    out.dims += dim;
  }
  out.numbers.resize(static_cast<size_t>(lookups));
  out.positions.resize(static_cast<size_t>(lookups));
  for (int64_t l = 0; l < lookups; ++l) {
    const int64_t place = next[l % fields * dims + rows[l].dim]++;
    out.numbers[place] = rows[l].numbers;
    out.positions[place] = l;
  }
  return out;
}

// Some lookups of a group, for the threads to share.
struct Task {
  const Group* group;
  int64_t begin;
  int64_t end;
};

inline std::vector<Task> split_groups(const std::vector<Group>& groups, int64_t rows) {
  std::vector<Task> tasks;
  for (const Group& group : groups) {
    for (int64_t at = group.begin; at < group.end; at += rows)
      tasks.push_back({&group, at, std::min(group.end, at + rows)});
  }
  return tasks;
}

}  // namespace
}  // namespace varemb
