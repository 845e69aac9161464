// Attention backward on the CPU, for one instruction set; the formulas stand in attention.h.
//
// A task is one kv head, so that nothing is summed by two threads: its blocks of keys, and against each the tiles of
// queries that see it.  Everything is computed transposed, a key to a row and a query to a lane:
//
//   s = k q^T    p = e^(scale * s - lse)    dp = v grad_out^T    ds = p * (dp - delta)
//   dv += p grad_out        dk += ds q        dq^T += k^T ds
//
// p and ds are then rows of A for dv and dk and lanes of B for dq^T without a transposition.  bf16 (avx512bf16)
// multiplies bf16 with bf16, p and ds rounded to it; everything else in fp32.  All sums are fp32, dq's in a scratch
// [Nq, Dh] of a head; with grouped heads dk's and dv's too, else they are a block's.
//
// Limits: Dh and N are any; no more than B * Hkv threads have work.  A task's scratch is about 6 bf16 copies of a
// head's queries (1 MB at 1379 x 64).
//
// Work: 10 * rows * seen keys * Dh operations.  Bytes: a head's q and grad_out once into two packed copies each, and
// these and the sums of dq once for each block of keys.
#pragma once
#include "attention_softmax.h"

namespace presto::cpu::PRESTO_ISA {

// A tile's operands and results, about 200 KB at Dh 64 in bf16, stay in L2 while its five products run, and each
// product works on 8 to 24 KB at a time.  Keys of a block: whole panels of 6 rows and whole vectors of words.
constexpr int64_t kTileKeys = 96;
constexpr int64_t kTileQueries = 128;
// Keys of a block where a window is narrow: at 17 each side 82 queries see some of 48 keys, 35 each.
constexpr int64_t kNarrowKeys = 48;

inline int64_t backward_tasks(const AttentionBackward& a) { return a.batch * a.kv_heads; }

template <class T>
class Backward {
  using C = typename Compute<T>::Type;
  static constexpr int64_t kWord = kPerWord<C>;
  static constexpr int64_t kTileRow = kTileQueries / kWord;  // words of a row of p or ds
  static constexpr int64_t kColumnRow = kTileKeys / kWord;   // words of a row of k^T
  static constexpr int64_t kScratchRow = kVectors * kLanes;

 public:
  explicit Backward(const AttentionBackward& args)
      : a_(args),
        group_(args.heads / args.kv_heads),
        words_(words_of<C>(args.dim)),
        row_(round_up(words_, kLanes)),
        dim_(round_up(args.dim, kLanes)),
        lanes_(lanes_stride(words_)),
        queries_(round_up(args.queries, kLanes)),
        window_(args.left >= 0 || args.right >= 0),
        block_keys_(args.left >= 0 && args.right >= 0 && args.left + args.right < kTileKeys ? kNarrowKeys : kTileKeys) {
    const int64_t blocks = group_ > 1 ? (args.keys + block_keys_ - 1) / block_keys_ : 1;
    struct {
      float** part;
      int64_t size;
    } const parts[] = {
        {&q_lanes_, queries_ / kLanes * lanes_},
        {&g_lanes_, queries_ / kLanes * lanes_},
        {&q_steps_, queries_ / kWord * dim_},
        {&g_steps_, queries_ / kWord * dim_},
        {&shift_, queries_},
        {&delta_, queries_},
        {&dq_, queries_ * dim_},
        {&dk_, blocks * block_keys_ * dim_},
        {&dv_, blocks * block_keys_ * dim_},
        {&k_rows_, kTileKeys * row_},
        {&v_rows_, kTileKeys * row_},
        {&k_steps_, kColumnRow * dim_},
        {&k_columns_, dim_ * kColumnRow},
        {&p_, kTileKeys * kTileRow},
        {&ds_, kTileKeys * kTileRow},
        {&ds_lanes_, kTileKeys / kWord * kTileQueries},
        {&unrounded_, kRows * kScratchRow},
    };
    int64_t all = 0;
    for (const auto& [part, size] : parts) all += round_up(size, 16);
    memory_ = static_cast<float*>(_mm_malloc(all * sizeof(float), 64));
    float* at = memory_;
    for (const auto& [part, size] : parts) {
      *part = at;
      at += round_up(size, 16);
    }
  }
  ~Backward() { _mm_free(memory_); }
  Backward(const Backward&) = delete;
  Backward& operator=(const Backward&) = delete;

  void task(int64_t t) {
    const int64_t b = t / a_.kv_heads, kv = t % a_.kv_heads;
    const Visible visible(a_, b);
    for (int64_t g = 0; g < group_; ++g) {
      pack_queries(b, kv * group_ + g);
      for (int64_t j = 0; j < a_.keys; j += block_keys_) {
        const int64_t all = least(block_keys_, a_.keys - j), seen = least(all, visible.length - j);
        const int64_t sums = group_ > 1 ? j * dim_ : 0;
        if (seen > 0) {
          if (g == 0) clear(sums, round_up(seen, kRows));
          block(b, kv, visible, j, seen, dk_ + sums, dv_ + sums);
        }
        if (g == group_ - 1) write_keys(b, kv, j, all, seen, dk_ + sums, dv_ + sums);
      }
      write_queries(b, kv * group_ + g);
    }
  }

 private:
  static HeadRows<T> head(const Heads& of, int64_t b, int64_t h, int64_t n = 0) {
    return {static_cast<const T*>(of.data) + b * of.batch_stride + h * of.head_stride + n * of.row_stride,
            of.row_stride};
  }

  // A head's queries, and what belongs to each; the lanes behind the last have p = 0.
  void pack_queries(int64_t b, int64_t h) {
    const HeadRows<T> out = head(a_.out, b, h);
    q_ = head(a_.q, b, h), g_ = head(a_.grad_out, b, h);
    pack_lanes<C>(q_, a_.queries, a_.dim, q_lanes_);
    pack_lanes<C>(g_, a_.queries, a_.dim, g_lanes_);
    pack_steps<C>(q_, a_.queries, queries_, a_.dim, q_steps_, dim_);
    pack_steps<C>(g_, a_.queries, queries_, a_.dim, g_steps_, dim_);
    const float* lse = a_.lse + (b * a_.heads + h) * a_.queries;
    for (int64_t i = 0; i < queries_; ++i) {
      shift_[i] = i < a_.queries ? -lse[i] * kUnit<C> : -infinity();
      delta_[i] = i < a_.queries ? dot(out.row(i), g_.row(i)) : 0.f;
    }
    for (int64_t i = 0; i < queries_ * dim_; i += kLanes) store(dq_ + i, zero(), All{});
    queries_finite_ = !window_ || (all_finite<C>(q_steps_, queries_ / kWord * dim_) &&
                                   all_finite<C>(g_steps_, queries_ / kWord * dim_));
  }

  float dot(const T* x, const T* y) const {
    Sum total;
    sweep(a_.dim,
          [&](int64_t d, int c, auto w) PRESTO_INLINE { total.add_product(c, load(x + d, w), load(y + d, w)); });
    return total.total();
  }

  void clear(int64_t sums, int64_t rows) {
    for (int64_t i = sums; i < sums + rows * dim_; i += kLanes) {
      store(dk_ + i, zero(), All{});
      store(dv_ + i, zero(), All{});
    }
  }

  // Keys [first, first + count) and the queries that see any of them.
  void block(int64_t b, int64_t kv, const Visible& visible, int64_t first, int64_t count, float* dk, float* dv) {
    const int64_t begin = visible.first_query(first) / kLanes * kLanes, end = visible.end_query(first + count - 1);
    if (end <= begin) return;
    const HeadRows<T> k = head(a_.k, b, kv, first), v = head(a_.v, b, kv, first);
    const int64_t rows = round_up(count, kRows), steps = round_up(rows, kLanes * kWord) / kWord;
    pack_rows<C>(k, count, rows, a_.dim, false, k_rows_, row_);
    pack_rows<C>(v, count, rows, a_.dim, false, v_rows_, row_);
    pack_steps<C>(k, count, steps * kWord, a_.dim, k_steps_, dim_);
    transpose_words(k_steps_, steps, dim_, k_columns_, kColumnRow);
    const bool finite =
        queries_finite_ && (!window_ || (all_finite<C>(k_rows_, rows * row_) && all_finite<C>(v_rows_, rows * row_)));
    for (int64_t i = begin; i < end; i += kTileQueries) {
      Tile tile{first, count, rows, i, (least(kTileQueries, end - i) + kLanes - 1) / kLanes};
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t j = first + r;
        tile.seen[r] = r < count ? Lanes{visible.first_query(j) - i, visible.end_query(j) - i} : Lanes{0, 0};
      }
      const int64_t last = least(tile.vectors * kLanes, a_.queries - i);
      const bool edge = rows > count || tile.seen[count - 1].from > 0 || tile.seen[0].to < last;
      if (edge && !finite) {
        one_by_one(tile, k, v, dk, dv);
        continue;
      }
      if (edge) {
        weights<true>(tile);
      } else {
        weights<false>(tile);
      }
      add_to_keys(tile, p_, g_steps_, dv);
      add_to_keys(tile, ds_, q_steps_, dk);
      add_to_queries(tile);
    }
  }

  struct Tile {
    int64_t key, keys, rows;  // rows: keys rounded up to whole panels
    int64_t query, vectors;
    Lanes seen[kTileKeys];  // the queries that see each key, from `query` on
  };

  // p_ and ds_
  template <bool kEdge>
  void weights(const Tile& tile) {
    const int64_t at = tile.query / kLanes;
    const Vec factor = splat(a_.scale * kUnit<C>);
    by_vectors(tile.vectors, [&](int64_t v, auto count) PRESTO_INLINE {
      constexpr int V = decltype(count)::value;
      const float *shift = shift_ + (at + v) * kLanes, *delta = delta_ + (at + v) * kLanes;
      for (int64_t row = 0; row < tile.rows; row += kRows) {
        const auto visible = [&](int r, int i, Vec x) PRESTO_INLINE {
          if (!kEdge) return x;
          return within(tile.seen[row + r], (v + i) * kLanes, x, zero());
        };
        Vec x[kRows][V];
        multiply_exponents<C>(k_rows_ + row * row_, row_, q_lanes_ + (at + v) * lanes_, kLanes, lanes_, words_, x);
        for (int r = 0; r < kRows; ++r) {
          for (int i = 0; i < V; ++i) {
            x[r][i] = visible(r, i, power<C>(fma(x[r][i], factor, load(shift + i * kLanes, All{}))));
            store(unrounded_ + r * kScratchRow + i * kLanes, x[r][i], All{});
          }
          store_words_of(p_ + (row + r) * kTileRow + v * kLanes / kWord, x[r], C{});
        }
        for (int r = 0; r < kRows; ++r)
          for (int i = 0; i < V; ++i) x[r][i] = zero();
        multiply<C>(v_rows_ + row * row_, row_, g_lanes_ + (at + v) * lanes_, kLanes, lanes_, words_, x);
        for (int r = 0; r < kRows; ++r) {
          for (int i = 0; i < V; ++i)
            x[r][i] = visible(
                r, i,
                load(unrounded_ + r * kScratchRow + i * kLanes, All{}) * (x[r][i] - load(delta + i * kLanes, All{})));
          store_words_of(ds_ + (row + r) * kTileRow + v * kLanes / kWord, x[r], C{});
        }
        if constexpr (kWord == 2)
          for (int r = 0; r < kRows; r += 2)
            for (int i = 0; i < V; ++i)
              store_zipped(ds_lanes_ + (row + r) / 2 * kTileQueries + (v + i) * kLanes, x[r][i], x[r + 1][i]);
      }
    });
  }

  template <int V>
  static void store_words_of(float* to, const Vec (&x)[V], float) {
    for (int i = 0; i < V; ++i) store(to + i * kLanes, x[i], All{});
  }
#if defined(__AVX512BF16__)
  template <int V>
  static void store_words_of(float* to, const Vec (&x)[V], bf16) {
    for (int i = 0; i + 1 < V; i += 2)
      _mm512_storeu_si512(to + i * kLanes / 2, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(x[i + 1], x[i])));
    if (V % 2) store_half(to + (V - 1) * kLanes / 2, narrow(x[V - 1], bf16{}), All{});
  }
  // A word of two keys for each query.
  static void store_zipped(float* to, Vec even, Vec odd) { _mm512_storeu_si512(to, join({even, odd})); }
#endif

  // dk += ds q, or dv += p grad_out
  void add_to_keys(const Tile& tile, const float* weights, const float* steps, float* sums) {
    const float* from = steps + tile.query / kWord * dim_;
    by_vectors(dim_ / kLanes, [&](int64_t v, auto count) PRESTO_INLINE {
      constexpr int V = decltype(count)::value;
      for (int64_t row = 0; row < tile.rows; row += kRows)
        accumulate<kRows, V>(weights + row * kTileRow, kTileRow, from + v * kLanes, dim_, kLanes,
                             tile.vectors * kLanes / kWord, sums + row * dim_ + v * kLanes, dim_, kLanes);
    });
  }

  // dq^T += k^T ds
  void add_to_queries(const Tile& tile) {
    const float* from = kWord == 2 ? ds_lanes_ : ds_;
    by_vectors(tile.vectors, [&](int64_t v, auto count) PRESTO_INLINE {
      constexpr int V = decltype(count)::value;
      float* to = dq_ + (tile.query + v * kLanes) * dim_;
      const int64_t sums = dim_ * kLanes, steps = tile.rows / kWord;
      int64_t d = 0;
      const auto rows = [&](auto how_many) PRESTO_INLINE {
        constexpr int R = decltype(how_many)::value;
        accumulate<R, V>(k_columns_ + d * kColumnRow, kColumnRow, from + v * kLanes, kTileQueries, kLanes, steps,
                         to + d * kLanes, kLanes, sums);
        d += R;
      };
      while (d + kRows <= dim_) rows(Count<kRows>{});
      if (dim_ - d == 4) rows(Count<4>{});
      if (dim_ - d == 2) rows(Count<2>{});
    });
  }

  template <int R, int V>
  static PRESTO_INLINE void accumulate(const float* a, int64_t a_row, const float* b, int64_t b_step, int64_t b_vector,
                                       int64_t steps, float* to, int64_t to_row, int64_t to_vector) {
    Vec sums[R][V];
    for (int r = 0; r < R; ++r)
      for (int i = 0; i < V; ++i) sums[r][i] = zero();
    multiply<C>(a, a_row, b, b_step, b_vector, steps, sums);
    for (int r = 0; r < R; ++r)
      for (int i = 0; i < V; ++i) {
        float* sum = to + r * to_row + i * to_vector;
        store(sum, load(sum, All{}) + sums[r][i], All{});
      }
  }

  // A tile with a hidden pair, where something is not finite: 0 * NaN is NaN, so what is hidden is not multiplied.
  void one_by_one(const Tile& tile, HeadRows<T> k, HeadRows<T> v, float* dk, float* dv) {
    alignas(64) float lane[kLanes];
    for (int64_t r = 0; r < tile.keys; ++r) {
      const int64_t end = least(tile.seen[r].to, tile.vectors * kLanes);
      for (int64_t i = most(tile.seen[r].from, 0); i < end; ++i) {
        const int64_t n = tile.query + i;
        store(lane, power<C>(splat(dot(k.row(r), q_.row(n)) * a_.scale * kUnit<C> + shift_[n])), All{});
        const float p = lane[0], ds = p * (dot(v.row(r), g_.row(n)) - delta_[n]);
        const auto add = [&](float* to, float weight, const T* row) {
          sweep(a_.dim, [&](int64_t d, int, auto w)
                            PRESTO_INLINE { store(to + d, fma(splat(weight), load(row + d, w), load(to + d, w)), w); });
        };
        add(dv + r * dim_, p, g_.row(n));
        add(dk + r * dim_, ds, q_.row(n));
        float* dq = dq_ + n / kLanes * kLanes * dim_ + n % kLanes;
        sweep(a_.dim, [&](int64_t d, int, auto w) {
          store(lane, splat(ds) * load(k.row(r) + d, w), All{});
          for (int64_t e = 0; e < least(kLanes, a_.dim - d); ++e) dq[(d + e) * kLanes] += lane[e];
        });
      }
    }
  }

  // `seen` keys of `all`; the others have no gradient.
  void write_keys(int64_t b, int64_t kv, int64_t first, int64_t all, int64_t seen, const float* dk, const float* dv) {
    for (int64_t r = 0; r < all; ++r) {
      const int64_t at = ((b * a_.keys + first + r) * a_.kv_heads + kv) * a_.dim;
      T *to_k = static_cast<T*>(a_.dk) + at, *to_v = static_cast<T*>(a_.dv) + at;
      sweep(a_.dim, [&](int64_t d, int, auto w) PRESTO_INLINE {
        store(to_k + d, r < seen ? load(dk + r * dim_ + d, w) * splat(a_.scale) : zero(), w);
        store(to_v + d, r < seen ? load(dv + r * dim_ + d, w) : zero(), w);
      });
    }
  }

  void write_queries(int64_t b, int64_t h) {
    for (int64_t i = 0; i < a_.queries; i += kLanes)
      for (int64_t d = 0; d < a_.dim; d += kLanes) {
        Vec x[kLanes];
        for (int64_t e = 0; e < kLanes; ++e) x[e] = load(dq_ + i * dim_ + (d + e) * kLanes, All{}) * splat(a_.scale);
        transpose(x);
        for (int64_t e = 0; e < kLanes && i + e < a_.queries; ++e) {
          T* to = static_cast<T*>(a_.dq) + ((b * a_.queries + i + e) * a_.heads + h) * a_.dim + d;
          if (a_.dim - d >= kLanes) {
            store(to, x[e], All{});
          } else {
            store(to, x[e], First{a_.dim - d});
          }
        }
      }
  }

  const AttentionBackward& a_;
  const int64_t group_, words_, row_, dim_, lanes_, queries_;
  const bool window_;
  const int64_t block_keys_;
  float *memory_, *q_lanes_, *g_lanes_, *q_steps_, *g_steps_, *shift_, *delta_, *dq_, *dk_, *dv_, *k_rows_, *v_rows_,
      *k_steps_, *k_columns_, *p_, *ds_, *ds_lanes_, *unrounded_;
  HeadRows<T> q_{}, g_{};
  bool queries_finite_ = true;
};

template <class T>
void backward(const AttentionBackward& args, int64_t first_task, int64_t last_task) {
  Backward<T> kernel(args);
  for (int64_t t = first_task; t < last_task; ++t) kernel.task(t);
}

}  // namespace presto::cpu::PRESTO_ISA
