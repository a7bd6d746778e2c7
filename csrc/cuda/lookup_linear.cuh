// Rows of different dims times the matrix of their group, plus a bias. Lookups are sorted by cell,
// that is by field and dim, and cut into tiles: the rows of a tile have one dim and one matrix, so
// that a tile is a small matrix product. Kernels only: no torch.
#pragma once

#include "device.cuh"

namespace varemb {
namespace {

constexpr int kTileRows = 32;     // lookups of a tile, or matrix rows
constexpr int kTileColumns = 64;  // outputs, or numbers of a row
constexpr int kTileDepth = 16;    // terms of a sum that shared memory holds at once

// What a call projects.
template <typename T>
struct Projected {
  const T* values;  // [E]
  Table<EitherRows> table;
  Integers indices;        // [L]
  const int64_t* groups;   // [F, D + 1, 2]: first matrix row and bias row of a cell, -1 for none
  const int64_t* offsets;  // [L] of the rows in the flat values, once cell_kernel has found them
  const T* weight;         // [S, O]
  const T* bias;           // [C, O]
  int64_t lookups, fields, matrix_rows, bias_rows, outputs;

  __device__ int64_t cells() const { return fields * (table.rows.width + 1); }
  __device__ int dim(int64_t cell) const { return static_cast<int>(cell % (table.rows.width + 1)); }
  __device__ int64_t matrix(int64_t cell) const { return groups[2 * cell]; }
  __device__ int64_t bias_row(int64_t cell) const { return groups[2 * cell + 1]; }
};

// A tile's lookups: sorted places [first, first + count) of one cell.
struct Span {
  int32_t cell;
  int32_t first;
  int32_t count;  // 0: a spare tile
};

// One thread per lookup: the cell to sort by, and where its row is. The index is read here alone,
// so that the products know no layout.
template <typename T>
__global__ void __launch_bounds__(kThreads) cell_kernel(
    Projected<T> call,
    uint32_t* __restrict__ cells,     // [L]
    int32_t* __restrict__ positions,  // [L]
    int64_t* __restrict__ offsets) {  // [L]
  const Group<1> group;
  for (int64_t i = group.number; i < call.lookups; i += group.count) {
    const Row where = call.table(call.indices[i]);
    const int64_t cell = i % call.fields * (call.table.rows.width + 1) + where.dim;
    VAREMB_DEVICE_ASSERT(
        call.matrix(cell) >= 0 && call.matrix(cell) + where.dim <= call.matrix_rows &&
        call.bias_row(cell) >= 0 && call.bias_row(cell) < call.bias_rows &&
        "no matrix for a row of this dim in this field");
    cells[i] = static_cast<uint32_t>(cell);
    positions[i] = static_cast<int32_t>(i);
    offsets[i] = where.offset;
  }
}

// The first place of ascending numbers that is not below `least`.
template <typename Number, typename Least>
__device__ int64_t first_not_below(const Number* numbers, int64_t count, Least least) {
  int64_t low = 0;
  int64_t high = count;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (static_cast<Least>(numbers[middle]) < least)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

// One thread per cell, and one more whose count is zero: tiles of the cell, and where it starts in
// the sorted order.
__global__ void __launch_bounds__(kThreads) tile_count_kernel(
    const uint32_t* __restrict__ sorted,  // [L]
    int64_t lookups,
    int64_t cells,
    int64_t* __restrict__ starts,    // [cells + 1]
    int64_t* __restrict__ counts) {  // [cells + 1]
  const Group<1> group;
  for (int64_t cell = group.number; cell <= cells; cell += group.count) {
    starts[cell] = first_not_below(sorted, lookups, cell);
    const int64_t end = first_not_below(sorted, lookups, cell + 1);
    counts[cell] = (end - starts[cell] + kTileRows - 1) / kTileRows;
  }
}

// One thread per tile that there may be: its lookups.
__global__ void __launch_bounds__(kThreads) tile_kernel(
    const int64_t* __restrict__ starts,  // [cells + 1]
    const int64_t* __restrict__ before,  // [cells + 1]: tiles of the cells before
    int64_t cells,
    int64_t tiles,
    Span* __restrict__ spans) {  // [tiles]
  const Group<1> group;
  for (int64_t tile = group.number; tile < tiles; tile += group.count) {
    spans[tile] = {0, 0, 0};
    if (tile >= before[cells]) continue;
    const int64_t cell = first_not_below(before, cells + 1, tile + 1) - 1;
    const int64_t first = starts[cell] + (tile - before[cell]) * kTileRows;
    const int64_t left = starts[cell + 1] - first;
    spans[tile] = {
        static_cast<int32_t>(cell), static_cast<int32_t>(first),
        static_cast<int32_t>(left < kTileRows ? left : kTileRows)};
  }
}

// The lookups of a tile in shared memory. All threads of a block must call read().
struct TileLookups {
  int64_t positions[kTileRows];
  int64_t offsets[kTileRows];  // of the rows in the flat values

  template <typename T>
  __device__ void read(const Projected<T>& call, const int32_t* sorted, const Span& span) {
    __syncthreads();  // the tile before may still be read
    const int place = static_cast<int>(threadIdx.x);
    if (place < span.count) {
      positions[place] = sorted[span.first + place];
      offsets[place] = call.offsets[positions[place]];
    }
    __syncthreads();  // every lookup must be there
  }
};

// A block's part of a matrix product, [kTileRows, kTileColumns]: 4 x 4 numbers per thread.
template <typename T>
struct Product {
  using Acc = WideOf<T>;
  static constexpr int kSide = 4;
  static constexpr int kAcross = kTileColumns / kSide;  // threads
  static_assert(kAcross * (kTileRows / kSide) == kThreads);

  // Padded: threads that write neighbouring terms should not meet in one bank.
  struct alignas(16) Terms {
    Acc lefts[kTileDepth][kTileRows + kSide];
    Acc rights[kTileDepth][kTileColumns + kSide];
  };

  Acc sums[kSide][kSide] = {};
  int row = static_cast<int>(threadIdx.x) / kAcross * kSide;
  int column = static_cast<int>(threadIdx.x) % kAcross * kSide;

  // Adds left(row, term) * right(term, column) for all terms below depth, in their order. The flags
  // say whether neighbouring terms are neighbours in memory, rather than rows or columns. All
  // threads of the block must call it.
  template <bool kLeftAlongTerms, bool kRightAlongTerms, typename Left, typename Right>
  __device__ void add(int64_t depth, const Left& left, const Right& right) {
    __shared__ Terms terms;
    for (int64_t first = 0; first < depth; first += kTileDepth) {
      __syncthreads();  // the terms before may still be read
#pragma unroll
      for (int i = static_cast<int>(threadIdx.x); i < kTileDepth * kTileRows; i += kThreads) {
        const int term = kLeftAlongTerms ? i % kTileDepth : i / kTileRows;
        const int m = kLeftAlongTerms ? i / kTileDepth : i % kTileRows;
        terms.lefts[term][m] = first + term < depth ? left(m, first + term) : Acc(0);
      }
#pragma unroll
      for (int i = static_cast<int>(threadIdx.x); i < kTileDepth * kTileColumns; i += kThreads) {
        const int term = kRightAlongTerms ? i % kTileDepth : i / kTileColumns;
        const int n = kRightAlongTerms ? i / kTileDepth : i % kTileColumns;
        terms.rights[term][n] = first + term < depth ? right(first + term, n) : Acc(0);
      }
      __syncthreads();  // all terms must be there
#pragma unroll
      for (int term = 0; term < kTileDepth; ++term) {
#pragma unroll
        for (int i = 0; i < kSide; ++i) {
#pragma unroll
          for (int j = 0; j < kSide; ++j) {
            sums[i][j] = multiply_add(
                terms.lefts[term][row + i], terms.rights[term][column + j], sums[i][j]);
          }
        }
      }
    }
  }

  // visit(row, column, sum) for the thread's numbers.
  template <typename Visit>
  __device__ void each(const Visit& visit) const {
#pragma unroll
    for (int i = 0; i < kSide; ++i) {
#pragma unroll
      for (int j = 0; j < kSide; ++j) visit(row + i, column + j, sums[i][j]);
    }
  }
};

// A block per tile and kTileColumns outputs: the tile's rows times their matrix, plus the bias,
// written to the places of their lookups. Deterministic.
template <typename T>
__global__ void __launch_bounds__(kThreads) lookup_linear_forward_kernel(
    Projected<T> call,
    const int32_t* __restrict__ sorted,  // [L]
    const Span* __restrict__ spans,      // [tiles]
    int64_t tiles,
    T* __restrict__ out) {  // [L, O]
  using Acc = WideOf<T>;
  __shared__ TileLookups lookups;
  const int64_t outputs = call.outputs;
  const int64_t parts = (outputs + kTileColumns - 1) / kTileColumns;
  for (int64_t place = blockIdx.x; place < tiles * parts; place += gridDim.x) {
    const Span span = spans[place / parts];
    if (span.count == 0) continue;
    lookups.read(call, sorted, span);
    const int64_t from = place % parts * kTileColumns;
    const T* const matrix = call.weight + call.matrix(span.cell) * outputs;
    const T* const bias = call.bias + call.bias_row(span.cell) * outputs;
    Product<T> product;
    product.template add<true, false>(
        call.dim(span.cell),
        [&](int m, int64_t k) {
          return m < span.count ? widen(call.values[lookups.offsets[m] + k]) : Acc(0);
        },
        [&](int64_t k, int n) {
          return from + n < outputs ? widen(matrix[k * outputs + from + n]) : Acc(0);
        });
    product.each([&](int m, int n, Acc sum) {
      if (m >= span.count || from + n >= outputs) return;
      out[lookups.positions[m] * outputs + from + n] = narrow<T>(sum + widen(bias[from + n]));
    });
  }
}

// A block per tile and kTileColumns numbers of its rows: the outputs' gradients times the matrix
// transposed, zeros beyond the rows' dim. Deterministic.
template <typename T>
__global__ void __launch_bounds__(kThreads) lookup_linear_rows_backward_kernel(
    Projected<T> call,
    const T* __restrict__ grad,          // [L, O]
    const int32_t* __restrict__ sorted,  // [L]
    const Span* __restrict__ spans,      // [tiles]
    int64_t tiles,
    T* __restrict__ out) {  // [L, D]
  using Acc = WideOf<T>;
  __shared__ TileLookups lookups;
  const int64_t outputs = call.outputs;
  const int64_t width = call.table.rows.width;
  const int64_t parts = (width + kTileColumns - 1) / kTileColumns;
  for (int64_t place = blockIdx.x; place < tiles * parts; place += gridDim.x) {
    const Span span = spans[place / parts];
    if (span.count == 0) continue;
    lookups.read(call, sorted, span);
    const int64_t from = place % parts * kTileColumns;
    const int64_t dim = call.dim(span.cell);
    const T* const matrix = call.weight + call.matrix(span.cell) * outputs;
    Product<T> product;
    product.template add<true, true>(
        from < dim ? outputs : 0,
        [&](int m, int64_t k) {
          return m < span.count ? widen(grad[lookups.positions[m] * outputs + k]) : Acc(0);
        },
        [&](int64_t k, int n) {
          return from + n < dim ? widen(matrix[(from + n) * outputs + k]) : Acc(0);
        });
    product.each([&](int m, int n, Acc sum) {
      if (m >= span.count || from + n >= width) return;
      out[lookups.positions[m] * width + from + n] = narrow<T>(sum);
    });
  }
}

// Of kThreads tiles, every step-th, those whose matrix rows meet a block's, in their order.
struct Meeting {
  int32_t tiles[kThreads];
  int32_t meets[kThreads];
  int count;

  // meets_block(tile) for the calling thread's tile. All threads of the block must call it.
  template <typename Meets>
  __device__ void find(int64_t first, int64_t step, int64_t end, const Meets& meets_block) {
    const int64_t tile = first + threadIdx.x * step;
    __syncthreads();  // the run before may still be read
    meets[threadIdx.x] = tile < end && meets_block(tile);
    __syncthreads();  // every thread's answer must be there
    int before = 0;
    int all = 0;
#pragma unroll 8
    for (int i = 0; i < kThreads; ++i) {
      before += i < static_cast<int>(threadIdx.x) ? meets[i] : 0;
      all += meets[i];
    }
    if (meets[threadIdx.x] != 0) tiles[before] = static_cast<int32_t>(tile);
    if (threadIdx.x == 0) count = all;
    __syncthreads();  // the list must be complete
  }
};

// A block per kTileRows matrix rows, kTileColumns outputs and part of the tiles: the sum of the
// rows' numbers times the outputs' gradients, lookups in sorted order. The tiles that meet a block
// are neighbours: a part takes every parts-th tile, so that the parts share them evenly. With
// kIsBias the matrix rows are bias rows and the numbers ones. How many parts there are depends on
// sizes alone: deterministic.
template <typename T, bool kIsBias>
__global__ void __launch_bounds__(kThreads, 4) lookup_linear_weights_backward_kernel(
    Projected<T> call,
    const T* __restrict__ grad,          // [L, O]
    const int32_t* __restrict__ sorted,  // [L]
    const Span* __restrict__ spans,      // [tiles]
    const int64_t* __restrict__ tiles,   // [1]: tiles that are not spare
    int64_t parts,
    int64_t matrix_rows,
    WideOf<T>* __restrict__ sums) {  // [parts, S, O]
  using Acc = WideOf<T>;
  __shared__ TileLookups lookups;
  __shared__ Meeting meeting;
  const int64_t outputs = call.outputs;
  const int64_t across = (outputs + kTileColumns - 1) / kTileColumns;
  const int64_t down = (matrix_rows + kTileRows - 1) / kTileRows;
  for (int64_t place = blockIdx.x; place < parts * down * across; place += gridDim.x) {
    const int64_t part = place / (down * across);
    const int64_t top = place / across % down * kTileRows;
    const int64_t from = place % across * kTileColumns;
    const int64_t end = *tiles;
    const auto first_row = [&](int64_t cell) {
      return kIsBias ? call.bias_row(cell) : call.matrix(cell);
    };
    const auto rows = [&](int64_t cell) { return kIsBias ? 1 : call.dim(cell); };
    const auto meets = [&](int64_t tile) {
      const int64_t cell = spans[tile].cell;
      return first_row(cell) < top + kTileRows && first_row(cell) + rows(cell) > top;
    };
    Product<T> product;
    for (int64_t run = part; run < end; run += kThreads * parts) {
      meeting.find(run, parts, end, meets);
      for (int i = 0; i < meeting.count; ++i) {
        const Span span = spans[meeting.tiles[i]];
        lookups.read(call, sorted, span);
        const int64_t skipped = top - first_row(span.cell);  // of the rows' numbers
        const int64_t dim = rows(span.cell);
        product.template add<false, false>(
            span.count,
            [&](int m, int64_t k) {
              const int64_t number = skipped + m;
              if (number < 0 || number >= dim) return Acc(0);
              return kIsBias ? Acc(1) : Acc(widen(call.values[lookups.offsets[k] + number]));
            },
            [&](int64_t k, int n) {
              if (from + n >= outputs) return Acc(0);
              return Acc(widen(grad[lookups.positions[k] * outputs + from + n]));
            });
      }
    }
    product.each([&](int m, int n, Acc sum) {
      if (top + m >= matrix_rows || from + n >= outputs) return;
      sums[(part * matrix_rows + top + m) * outputs + from + n] = sum;
    });
  }
}

// One thread per number: the sum of its parts, in their order.
template <typename T>
__global__ void __launch_bounds__(kThreads) sum_parts_kernel(
    const WideOf<T>* __restrict__ sums,  // [parts, numbers]
    int64_t parts,
    int64_t numbers,
    T* __restrict__ out) {  // [numbers]
  const Group<1> group;
  for (int64_t i = group.number; i < numbers; i += group.count) {
    WideOf<T> sum = 0;
    for (int64_t part = 0; part < parts; ++part) sum += sums[part * numbers + i];
    out[i] = narrow<T>(sum);
  }
}

}  // namespace
}  // namespace varemb
