// Optimizers on the rows that a batch touched: each number is read and written once, its state
// beside it. update_ takes a coalesced gradient; coalesce_update_ sums a row's gradient in
// registers and applies it at once, so that no gradient is ever stored. Rows are distinct, so
// threads write disjoint memory.
#include "gradient.h"
#include "round.h"

#include <cmath>

namespace varemb {
namespace {

// Where the numbers of `hyper` [6] stand; float64, so that one tensor serves every step and a
// captured graph.
struct Hyper {
  double lr, weight_decay, eps, beta1, beta2, step;
};

// What a rule may touch: a row's numbers and state, all flat and behind the same offset, or one
// state number per row.
template <typename T>
struct Slices {
  using Acc = typename Wide<T>::type;
  T* values;    // [E]
  Acc* state1;  // [E], [N] for row-wise Adagrad, null for SGD
  Acc* state2;  // [E] for Adam
};

// p <- p - lr g
template <typename T>
struct Sgd {
  using Acc = typename Wide<T>::type;
  Vec<T> lr;
  explicit Sgd(const Hyper& hyper) : lr(Vec<T>::fill(static_cast<Acc>(hyper.lr))) {}

  template <typename Load, typename Store>
  void operator()(
      const Slices<T>& to,
      int64_t,
      int64_t offset,
      int64_t dim,
      const Load& gradient,
      const Store& store) const {
    for (int64_t k = 0; k < dim; k += Vec<T>::kLanes) {
      const Vec<T> value = Vec<T>::load(to.values + offset + k, dim - k);
      store(value - lr * gradient(value, k), to.values, offset + k, dim - k);
    }
  }
};

// s <- s + g^2,  p <- p - lr g / (sqrt(s) + eps)   (Duchi et al. 2011; torch.optim.Adagrad)
template <typename T>
struct Adagrad {
  using Acc = typename Wide<T>::type;
  Vec<T> lr, eps;
  explicit Adagrad(const Hyper& hyper)
      : lr(Vec<T>::fill(static_cast<Acc>(hyper.lr))),
        eps(Vec<T>::fill(static_cast<Acc>(hyper.eps))) {}

  template <typename Load, typename Store>
  void operator()(
      const Slices<T>& to,
      int64_t,
      int64_t offset,
      int64_t dim,
      const Load& gradient,
      const Store& store) const {
    for (int64_t k = 0; k < dim; k += Vec<T>::kLanes) {
      const int64_t at = offset + k;
      const Vec<T> value = Vec<T>::load(to.values + at, dim - k);
      const Vec<T> g = gradient(value, k);
      const Vec<T> sum = fma(g, g, Vec<T>::load(to.state1 + at, dim - k));
      sum.store(to.state1 + at, dim - k);
      store(value - lr * g / (sqrt(sum) + eps), to.values, at, dim - k);
    }
  }
};

// s <- s + mean(g^2) over the row's own dim,  p <- p - lr g / (sqrt(s) + eps); one state number per
// row (FBGEMM's rule)
template <typename T>
struct RowWiseAdagrad {
  using Acc = typename Wide<T>::type;
  Acc lr, eps;
  explicit RowWiseAdagrad(const Hyper& hyper)
      : lr(static_cast<Acc>(hyper.lr)), eps(static_cast<Acc>(hyper.eps)) {}

  template <typename Load, typename Store>
  void operator()(
      const Slices<T>& to,
      int64_t row,
      int64_t offset,
      int64_t dim,
      const Load& gradient,
      const Store& store) const {
    if (dim == 0) return;
    Vec<T> squares = Vec<T>::zero();
    for (int64_t k = 0; k < dim; k += Vec<T>::kLanes) {
      const Vec<T> g = gradient(Vec<T>::load(to.values + offset + k, dim - k), k);
      squares = fma(g, g, squares);
    }
    to.state1[row] += squares.sum() / static_cast<Acc>(dim);
    const Vec<T> rate = Vec<T>::fill(lr / (std::sqrt(to.state1[row]) + eps));
    for (int64_t k = 0; k < dim; k += Vec<T>::kLanes) {
      const Vec<T> value = Vec<T>::load(to.values + offset + k, dim - k);
      store(value - rate * gradient(value, k), to.values, offset + k, dim - k);
    }
  }
};

// m <- b1 m + (1-b1) g,  v <- b2 v + (1-b2) g^2,  p <- p - lr mhat / (sqrt(vhat) + eps)   (Kingma &
// Ba 2015, Alg. 1), on the rows of the batch only; the bias correction uses the number of steps of
// the table.
template <typename T>
struct Adam {
  using Acc = typename Wide<T>::type;
  Vec<T> beta1, rest1, beta2, rest2, rate, root, eps;
  explicit Adam(const Hyper& hyper)
      : beta1(Vec<T>::fill(static_cast<Acc>(hyper.beta1))),
        rest1(Vec<T>::fill(static_cast<Acc>(1 - hyper.beta1))),
        beta2(Vec<T>::fill(static_cast<Acc>(hyper.beta2))),
        rest2(Vec<T>::fill(static_cast<Acc>(1 - hyper.beta2))),
        rate(Vec<T>::fill(static_cast<Acc>(hyper.lr / (1 - std::pow(hyper.beta1, hyper.step))))),
        root(Vec<T>::fill(static_cast<Acc>(1 / std::sqrt(1 - std::pow(hyper.beta2, hyper.step))))),
        eps(Vec<T>::fill(static_cast<Acc>(hyper.eps))) {}

  template <typename Load, typename Store>
  void operator()(
      const Slices<T>& to,
      int64_t,
      int64_t offset,
      int64_t dim,
      const Load& gradient,
      const Store& store) const {
    for (int64_t k = 0; k < dim; k += Vec<T>::kLanes) {
      const int64_t at = offset + k;
      const int64_t n = dim - k;
      const Vec<T> value = Vec<T>::load(to.values + at, n);
      const Vec<T> g = gradient(value, k);
      const Vec<T> m = fma(rest1, g, beta1 * Vec<T>::load(to.state1 + at, n));
      const Vec<T> v = fma(rest2, g * g, beta2 * Vec<T>::load(to.state2 + at, n));
      m.store(to.state1 + at, n);
      v.store(to.state2 + at, n);
      store(value - rate * m / (sqrt(v) * root + eps), to.values, at, n);
    }
  }
};

template <typename T>
Slices<T> slices_of(const StepArgs& args) {
  using Acc = typename Wide<T>::type;
  return {
      mutable_data<T>(args.values), mutable_data_or_null<Acc>(args.state1),
      mutable_data_or_null<Acc>(args.state2)};
}

Hyper hyper_of(const Tensor& hyper) {
  const double* h = data<double>(hyper);
  return {h[0], h[1], h[2], h[3], h[4], h[5]};
}

// Calls body with how to store new values; the choice stands outside of every loop.
template <typename T, typename Body>
void dispatch_store(const std::optional<Tensor>& rounding, const Body& body) {
  if constexpr (sizeof(T) == 2) {
    if (rounding) {
      const int64_t* numbers = data<int64_t>(*rounding);
      return body(Stochastic{numbers[0], numbers[1]});
    }
  }
  body(Nearest{});
}

template <typename T, typename Body>
void dispatch_rule(Algorithm algorithm, const Hyper& hyper, const Body& body) {
  switch (algorithm) {
    case Algorithm::kSgd: return body(Sgd<T>(hyper));
    case Algorithm::kAdagrad: return body(Adagrad<T>(hyper));
    case Algorithm::kRowWiseAdagrad: return body(RowWiseAdagrad<T>(hyper));
    case Algorithm::kAdam: return body(Adam<T>(hyper));
  }
}

// The gradient of a register of numbers: g + weight_decay * p.
template <typename T, typename G>
auto decayed(const G* gradient, int64_t dim, const Vec<T>& decay) {
  return [=](const Vec<T>& value, int64_t k) {
    return fma(decay, value, Vec<T>::load(gradient + k, dim - k));
  };
}

void update_(
    const Tensor& values,                   // [E], changed
    const std::optional<Tensor>& state1,    // [E] or [N], changed
    const std::optional<Tensor>& state2,    // [E], changed
    const Tensor& hyper,                    // [6]
    const std::optional<Tensor>& rounding,  // [2]
    const Tensor& index,                    // [blocks, 4], packed
    const Tensor& positions,  // [n] ascending: every touched row from its first number on
    const Tensor& grad,       // [n]
    int64_t num_rows,
    int64_t width,
    int64_t granule,
    int64_t algorithm) {
  const char* op = "update";
  const StepArgs args{values, state1, state2, hyper, rounding, num_rows, algorithm};
  const RowsArgs where{index, num_rows, width, granule, values.size(0)};
  const Algorithm rule_name = check_update(op, args, where, positions, grad);
  check_last_row(op, where);
  const PackedRows rows = packed_rows(where);
  const Hyper numbers = hyper_of(hyper);
  const int64_t* const places = data<int64_t>(positions);
  const int64_t count = positions.size(0);
  for (int64_t i = 0; i < count; ++i) {
    check(
        places[i] >= 0 && places[i] < values.size(0) && (i == 0 || places[i] > places[i - 1]), op,
        ": positions must be distinct, ascending and in [0, ", values.size(0), "), got ", places[i],
        " at ", i);
  }
  dispatch_values(op, values, [&](auto value_type) {
    using T = typename decltype(value_type)::type;
    const auto slices = slices_of<T>(args);
    const Vec<T> decay = Vec<T>::fill(static_cast<typename Wide<T>::type>(numbers.weight_decay));
    const auto step = [&](const auto& rule, const auto& store) {
      const BadIndex bad = parallel_lookup(count, 4096, [&](int64_t begin, int64_t end) {
        BadIndex first;
        int64_t at = begin;
        // A row that began in the range before belongs to it.
        if (at > 0) {
          const Row before = rows(rows.row_at(places[at - 1]));
          while (at < end && places[at] < before.offset + before.dim) ++at;
        }
        while (at < end) {
          const int64_t row = rows.row_at(places[at]);
          const Row where = rows(row);
          if (places[at] != where.offset && at < first.position) first = {at, places[at]};
          int64_t next = at + 1;
          while (next < count && next - at < where.dim && places[next] == places[at] + (next - at))
            ++next;
          const int64_t dim = next - at;
          rule(slices, row, places[at], dim, decayed<T>(data<T>(grad) + at, dim, decay), store);
          at = next;
        }
        return first;
      });
      check(
          !bad.is_bad(), op, ": a row's gradient must begin at its first number, position ",
          bad.index, " is inside a row");
    };
    dispatch_store<T>(rounding, [&](const auto& store) {
      dispatch_rule<T>(rule_name, numbers, [&](const auto& rule) { step(rule, store); });
    });
  });
}

void coalesce_update_(
    const Tensor& values,                   // [E], changed
    const std::optional<Tensor>& state1,    // [E] or [N], changed
    const std::optional<Tensor>& state2,    // [E], changed
    const Tensor& hyper,                    // [6]
    const std::optional<Tensor>& rounding,  // [2]
    const Tensor& grad,                     // [L, D], or [G, D] with offsets
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
    int64_t algorithm) {
  const char* op = "coalesce_update";
  const StepArgs step_args{values, state1, state2, hyper, rounding, num_rows, algorithm};
  const GradientArgs args{
      grad,    index,    indices, offsets, per_sample_weights, limit,
      winners, num_rows, granule, mode,    padding_idx,        include_last_offset};
  const Algorithm rule_name = check_coalesce_update(op, step_args, args);
  const Hyper numbers = hyper_of(hyper);
  dispatch_values(op, values, [&](auto value_type) {
    using T = typename decltype(value_type)::type;
    const auto slices = slices_of<T>(step_args);
    const Gradient<T> gradient(op, args, values.size(0));
    const Vec<T> decay = Vec<T>::fill(static_cast<typename Wide<T>::type>(numbers.weight_decay));
    const bool per_row = rule_name == Algorithm::kRowWiseAdagrad;
    const auto step = [&](const auto& rule, const auto& store) {
      torch::stable::parallel_for(0, gradient.chunks(), 1, [&](int64_t begin, int64_t end) {
        for (int64_t chunk = begin; chunk < end; ++chunk) {
          gradient.each_sum(
              chunk,
              [&](const Run& run) {
                prefetch_bytes(
                    slices.values + run.where.offset, run.dim * static_cast<int64_t>(sizeof(T)));
                const int64_t state_bytes = run.dim * static_cast<int64_t>(sizeof(*slices.state1));
                if (per_row)
                  prefetch(slices.state1 + run.row);
                else if (slices.state1 != nullptr)
                  prefetch_bytes(slices.state1 + run.where.offset, state_bytes);
                if (slices.state2 != nullptr)
                  prefetch_bytes(slices.state2 + run.where.offset, state_bytes);
              },
              [&](const Run& run, const auto* sum) {
                const auto summed = decayed<T>(sum, run.dim, decay);
                rule(slices, run.row, run.where.offset, run.dim, summed, store);
              });
        }
      });
    };
    dispatch_store<T>(rounding, [&](const auto& store) {
      dispatch_rule<T>(rule_name, numbers, [&](const auto& rule) { step(rule, store); });
    });
  });
}

STABLE_TORCH_LIBRARY_IMPL(varemb, CPU, m) {
  m.impl("update_", TORCH_BOX(&update_));
  m.impl("coalesce_update_", TORCH_BOX(&coalesce_update_));
}

}  // namespace
}  // namespace varemb
