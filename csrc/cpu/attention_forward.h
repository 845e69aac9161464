// Attention forward on the CPU, for one instruction set; the formula stands in attention.h.
//
// A task is a chunk of query rows of one head.  Its keys and values are packed once (attention_pack.h) and stay packed
// for the tasks behind it that read the same.  Six query rows, a panel, meet a block of keys at a time: scores in
// registers, their running maximum, weights e^(scores - maximum) with fp32 sums of them unrounded, and a product with
// the values onto the panel's fp32 sums.  bf16 (avx512bf16) multiplies bf16 with bf16, the weights rounded to it;
// everything else multiplies in fp32.  Keys that no query of a panel sees are not visited.
//
// Limits: none; Dh and N are any.  Rounding: weights to bf16 with bf16 products, the result to its dtype.
//
// Work: 4 * rows * seen keys * Dh operations.  Bytes: a head's keys and values once into the packed copy (2 * Nk * Dh,
// in L2 at 1379 x 64 bf16), and that copy once for each kBlockRows query rows.
#pragma once
#include "attention_softmax.h"

namespace presto::cpu::PRESTO_ISA {

// Keys between two looks at the maximum.  On Zen 4 at [1, 1379, 16, 64], bf16 and fp32: 128 are 3 % slower than 256,
// 512 are 1 to 2 % faster; the scores and weights of six rows (25 KB) then just stay in L1.
constexpr int64_t kBlockKeys = 512;
// Query rows that share a block of keys while it is in the cache, in whole panels: a long sequence's packed keys and
// values are read once for so many rows.
constexpr int64_t kBlockRows = 96;
// Query rows of a task: small enough that 8 tasks a head keep many threads busy at 1379 rows, and packing the keys anew
// on each thread stays a few per cent of a task.
constexpr int64_t kChunkRows = 192;
// And with a window, where the keys of a task are its own: at 17 each side 7 % of them are packed twice.
constexpr int64_t kWindowRows = 480;

inline int64_t chunk_rows(const AttentionInputs& a) { return a.left >= 0 || a.right >= 0 ? kWindowRows : kChunkRows; }

inline int64_t forward_tasks(const AttentionForward& a) {
  return a.batch * a.heads * ((a.queries + chunk_rows(a) - 1) / chunk_rows(a));
}

template <class T>
class Forward {
  using C = typename Compute<T>::Type;
  static constexpr int64_t kWord = kPerWord<C>;
  static constexpr int64_t kScoreRow = kBlockKeys + kLanes;

 public:
  explicit Forward(const AttentionForward& args)
      : a_(args),
        words_(words_of<C>(args.dim)),
        q_row_(round_up(words_, kLanes)),
        dim_(round_up(args.dim, kLanes)),
        key_lanes_(lanes_stride(words_)),
        scale_(__builtin_fabsf(args.scale)),
        window_(args.left >= 0 || args.right >= 0),
        narrow_(args.left >= 0 && args.right >= 0 && args.left + args.right < kBlockKeys) {
    int64_t keys = args.keys;
    if (args.left >= 0 && args.right >= 0) keys = least(keys, args.left + args.right + kWindowRows);
    keys = round_up(keys, kLanes);
    const int64_t sizes[] = {keys / kLanes * key_lanes_, keys / kWord * dim_, kBlockRows * q_row_, kBlockRows * dim_,
                             kBlockRows * kLanes,        kRows * kScoreRow,   kRows * kScoreRow};
    float** parts[] = {&keys_, &values_, &q_, &sums_, &totals_, &scores_, &weights_};
    int64_t all = 0;
    for (int64_t size : sizes) all += round_up(size, 16);
    memory_ = static_cast<float*>(_mm_malloc(all * sizeof(float), 64));
    float* at = memory_;
    for (int i = 0; i < 7; ++i) {
      *parts[i] = at;
      at += round_up(sizes[i], 16);
    }
  }
  ~Forward() { _mm_free(memory_); }
  Forward(const Forward&) = delete;
  Forward& operator=(const Forward&) = delete;

  void task(int64_t t) {
    const int64_t group = a_.heads / a_.kv_heads, rows = chunk_rows(a_), chunks = (a_.queries + rows - 1) / rows;
    // What follows each other reads the same packed keys; or, with a window, the heads of the same rows, which are
    // neighbours in memory.
    const int64_t pairs = chunks * a_.kv_heads, b = t / group / pairs, pair = t / group % pairs;
    const int64_t chunk = window_ ? pair / a_.kv_heads : pair % chunks;
    const int64_t kv = window_ ? pair % a_.kv_heads : pair / chunks, h = kv * group + t % group;
    const int64_t begin = chunk * rows, end = least(begin + rows, a_.queries);
    const Visible visible(a_, b);
    pack(b, kv, visible, begin, end);
    const int64_t step = narrow_ ? kRows : kBlockRows;
    for (int64_t i = begin; i < end; i += step) rows_of(b, h, visible, i, least(i + step, end));
  }

 private:
  // The keys and values that rows [begin, end) see.
  void pack(int64_t b, int64_t kv, const Visible& visible, int64_t begin, int64_t end) {
    const int64_t first = visible.first_key(begin), last = visible.end_key(end - 1);
    if (b == b_ && kv == kv_ && first == first_ && last == last_) return;
    b_ = b, kv_ = kv, first_ = first, last_ = last;
    if (last <= first) return;
    const HeadRows<T> k = head(a_.k, b, kv, first), v = head(a_.v, b, kv, first);
    pack_lanes<C>(k, last - first, a_.dim, keys_);
    pack_steps<C>(v, last - first, round_up(last - first, kLanes), a_.dim, values_, dim_);
    v_ = v;
    values_finite_ = !window_ || all_finite<C>(values_, round_up(last - first, kLanes) / kWord * dim_);
  }

  static HeadRows<T> head(const Heads& of, int64_t b, int64_t h, int64_t n) {
    return {static_cast<const T*>(of.data) + b * of.batch_stride + h * of.head_stride + n * of.row_stride,
            of.row_stride};
  }

  // Query rows [begin, end) of one head.
  void rows_of(int64_t b, int64_t h, const Visible& visible, int64_t begin, int64_t end) {
    const int64_t rows = end - begin, panels = (rows + kRows - 1) / kRows;
    const HeadRows<T> q = head(a_.q, b, h, begin);
    if (window_) {
      // Here little is computed for each byte: the next head's rows come while this one's are worked on.
      if (h + 1 < a_.heads) prefetch(head(a_.q, b, h + 1, begin), 0, rows, a_.dim);
      const int64_t kv = (h + 1) * a_.kv_heads / a_.heads, until = least(end, a_.keys) - begin;
      if (kv < a_.kv_heads && kv != kv_) {
        prefetch(head(a_.k, b, kv, begin), 0, until, a_.dim);
        prefetch(head(a_.v, b, kv, begin), 0, until, a_.dim);
      }
    }
    pack_rows<C>(q, rows, panels * kRows, a_.dim, a_.scale < 0, q_, q_row_);
    bool fresh[kBlockRows / kRows];
    for (int64_t p = 0; p < panels; ++p) fresh[p] = true;
    for (int64_t i = 0; i < panels * kRows; ++i) maxima_[i] = -infinity();
    const int64_t last_key = visible.end_key(end - 1);
    const int64_t first_block = first_ + (visible.first_key(begin) - first_) / kLanes * kLanes;
    for (int64_t block = first_block; block < last_key; block += kBlockKeys)
      for (int64_t p = 0; p < panels; ++p) {
        if (block == first_block && !window_)  // the rows that come next, a few at a time
          prefetch(q, rows + p * kRows, least(rows + (p + 1) * kRows, a_.queries - begin), a_.dim);
        Panel panel;
        panel.row = p * kRows;
        for (int64_t r = 0; r < kRows; ++r) {
          const int64_t i = least(begin + panel.row + r, end - 1);
          panel.seen[r] = {visible.first_key(i) - first_, visible.end_key(i) - first_};
        }
        const int64_t start = block - first_;
        panel.begin = start + most(panel.seen[0].from - start, 0) / kLanes * kLanes;
        panel.end = least(panel.seen[kRows - 1].to, start + kBlockKeys);
        if (panel.end <= panel.begin) continue;
        panel.edge = panel.seen[kRows - 1].from > panel.begin || panel.seen[0].to < round_up(panel.end, kLanes);
        panel.fresh = fresh[p];
        fresh[p] = false;
        meet(panel);
      }
    for (int64_t i = 0; i < rows; ++i) finish(b, h, begin + i, i, fresh[i / kRows]);
  }

  // Six rows and the packed keys [begin, end).
  struct Panel {
    int64_t row, begin, end;
    Lanes seen[kRows];
    bool edge;   // some row does not see some key of the vectors
    bool fresh;  // the first keys these rows meet
  };

  void meet(const Panel& panel) {
    const int64_t vectors = (panel.end - panel.begin + kLanes - 1) / kLanes;
    scores(panel, vectors);
    if (panel.edge) {
      weights<true>(panel, vectors);
    } else {
      weights<false>(panel, vectors);
    }
    if (panel.edge && !values_finite_) return add_values_one_by_one(panel);
    const int64_t steps = (panel.end - panel.begin + kWord - 1) / kWord;
    const float* values = values_ + panel.begin / kWord * dim_;
    by_vectors(dim_ / kLanes, [&](int64_t v, auto count) PRESTO_INLINE {
      constexpr int V = decltype(count)::value;
      Vec sums[kRows][V];
      float* to = sums_ + panel.row * dim_ + v * kLanes;
      for (int r = 0; r < kRows; ++r)
        for (int i = 0; i < V; ++i) sums[r][i] = zero();
      multiply<C>(weights_, kScoreRow, values + v * kLanes, dim_, kLanes, steps, sums);
      for (int r = 0; r < kRows; ++r)
        for (int i = 0; i < V; ++i) {
          float* sum = to + r * dim_ + i * kLanes;
          store(sum, panel.fresh ? sums[r][i] : fma(splat(shrink_[r]), load(sum, All{}), sums[r][i]), All{});
        }
    });
  }

  // scores_ and, lane by lane, their maxima over the vectors (of use where no key is hidden).
  void scores(const Panel& panel, int64_t vectors) {
    const float* keys = keys_ + panel.begin / kLanes * key_lanes_;
    const float* q = q_ + panel.row * q_row_;
    for (int r = 0; r < kRows; ++r) greatest_[r] = splat(-infinity());
    by_vectors(vectors, [&](int64_t v, auto count) PRESTO_INLINE {
      constexpr int V = decltype(count)::value;
      Vec sums[kRows][V];
      multiply_exponents<C>(q, q_row_, keys + v * key_lanes_, kLanes, key_lanes_, words_, sums);
      for (int r = 0; r < kRows; ++r) {
        Vec most = greatest_[r];
        for (int i = 0; i < V; ++i) {
          store(scores_ + r * kScoreRow + (v + i) * kLanes, sums[r][i], All{});
          most = greater(sums[r][i], most);
        }
        greatest_[r] = most;
      }
    });
  }

  // weights_ from scores_; totals_, maxima_ and the factors shrink_ by which earlier sums shrink.
  template <bool kEdge>
  void weights(const Panel& panel, int64_t vectors) {
    alignas(64) float change[kLanes] = {};
    float base[kRows];
    for (int r = 0; r < kRows; ++r) {
      const float* s = scores_ + r * kScoreRow;
      const Lanes seen = {panel.seen[r].from - panel.begin, panel.seen[r].to - panel.begin};
      Vec most = greatest_[r];
      if (kEdge) {
        most = splat(-infinity());
        for (int64_t v = 0; v < vectors; ++v)
          most = greater(within(seen, v * kLanes, load(s + v * kLanes, All{}), splat(-infinity())), most);
      }
      const float before = maxima_[panel.row + r], found = greatest(most), now = found > before ? found : before;
      maxima_[panel.row + r] = now;
      change[r] = before == -infinity() ? before : (before - now) * scale_;
      base[r] = now == -infinity() ? 0.f : now * scale_;
    }
    store(shrink_, power<float>(load(change, All{})), All{});
    for (int r = 0; r < kRows; ++r) {
      const float* s = scores_ + r * kScoreRow;
      float* w = weights_ + r * kScoreRow;
      const Lanes seen = {panel.seen[r].from - panel.begin, panel.seen[r].to - panel.begin};
      const Vec factor = splat(scale_ * kUnit<C>), offset = splat(-base[r] * kUnit<C>);
      const auto weight_of = [&](int64_t v) PRESTO_INLINE {
        const Vec p = power<C>(fma(load(s + v * kLanes, All{}), factor, offset));
        return kEdge ? within(seen, v * kLanes, p, zero()) : p;
      };
      Vec total = zero(), other = zero();
      int64_t v = 0;
      for (; v + 2 <= vectors; v += 2) {
        const Vec p = weight_of(v), q = weight_of(v + 1);
        total += p;
        other += q;
        store_weights(w + v * kLanes / kWord, p, q, C{});
      }
      if (v < vectors) {
        const Vec p = weight_of(v);
        total += p;
        store_weights(w + v * kLanes / kWord, p, zero(), C{});
      }
      total += other;
      float* t = totals_ + (panel.row + r) * kLanes;
      store(t, panel.fresh ? total : fma(load(t, All{}), splat(shrink_[r]), total), All{});
    }
  }

  static void store_weights(float* to, Vec p, Vec q, float) {
    store(to, p, All{});
    store(to + kLanes, q, All{});
  }
#if defined(__AVX512BF16__)
  static void store_weights(float* to, Vec p, Vec q, bf16) {
    _mm512_storeu_si512(to, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(q, p)));
  }
#endif

  // A value that is not finite must not reach rows that do not see its key, and 0 * NaN is NaN.
  void add_values_one_by_one(const Panel& panel) {
    for (int r = 0; r < kRows; ++r) {
      float* to = sums_ + (panel.row + r) * dim_;
      for (int64_t d = 0; d < dim_; d += kLanes)
        store(to + d, panel.fresh ? zero() : splat(shrink_[r]) * load(to + d, All{}), All{});
      const int64_t end = least(panel.end, panel.seen[r].to);
      for (int64_t j = most(panel.begin, panel.seen[r].from); j < end; ++j) {
        const C* weights = reinterpret_cast<const C*>(weights_ + r * kScoreRow);
        const Vec weight = splat(as_float(weights[j - panel.begin]));
        sweep(a_.dim, [&](int64_t d, int, auto w)
                          PRESTO_INLINE { store(to + d, fma(weight, load(v_.row(j) + d, w), load(to + d, w)), w); });
      }
    }
  }

  void finish(int64_t b, int64_t h, int64_t i, int64_t row, bool fresh) {
    T* out = static_cast<T*>(a_.out) + ((b * a_.queries + i) * a_.heads + h) * a_.dim;
    const float total = fresh ? 0.f : sum(load(totals_ + row * kLanes, All{}));
    const Vec inverse = splat(1.f / total);
    const float* from = sums_ + row * dim_;
    sweep(a_.dim, [&](int64_t d, int, auto w)
                      PRESTO_INLINE { store(out + d, total == 0.f ? zero() : load(from + d, w) * inverse, w); });
    a_.lse[(b * a_.heads + h) * a_.queries + i] =
        total == 0.f ? -infinity() : maxima_[row] * scale_ + __builtin_logf(total);
  }

  const AttentionForward& a_;
  const int64_t words_, q_row_, dim_, key_lanes_;
  const float scale_;
  const bool window_, narrow_;
  float *memory_, *keys_, *values_, *q_, *sums_, *totals_, *scores_, *weights_;
  alignas(64) float maxima_[kBlockRows];
  alignas(64) float shrink_[kLanes];
  Vec greatest_[kRows];
  int64_t b_ = -1, kv_ = -1, first_ = -1, last_ = -1;
  HeadRows<T> v_{};
  bool values_finite_ = true;
};

template <class T>
void forward(const AttentionForward& args, int64_t first_task, int64_t last_task) {
  Forward<T> kernel(args);
  for (int64_t t = first_task; t < last_task; ++t) kernel.task(t);
}

}  // namespace presto::cpu::PRESTO_ISA
