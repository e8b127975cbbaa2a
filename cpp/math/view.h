// Strided arrays as the loop sees them: contiguous, uniform, or copied block by block.
#ifndef SIGMOID_CE_MATH_VIEW_H_
#define SIGMOID_CE_MATH_VIEW_H_

#include <cstdint>
#include <cstring>

#include "sigmoid_ce/options.h"

namespace sigmoid_ce {
namespace math {

// Axes of length 1 dropped and axes that lie in one stride merged, so that most arrays have one or two.
class View {
 public:
  // `strides` null: contiguous, and `data` is the element of index `first`.
  View(const void* data, std::int64_t itemsize, const std::int64_t* shape, int ndim,
       const std::int64_t* strides, std::int64_t first)
      : itemsize_(itemsize), ndim_(0) {
    base_ = reinterpret_cast<std::uintptr_t>(data);
    if (strides == nullptr) {
      base_ -= static_cast<std::uintptr_t>(first * itemsize);
      extent_[0] = INT64_MAX;
      stride_[0] = itemsize;
      ndim_ = 1;
      return;
    }
    for (int d = 0; d < ndim; ++d) {
      if (shape[d] == 1) continue;
      if (ndim_ > 0 && stride_[ndim_ - 1] == strides[d] * shape[d]) {
        extent_[ndim_ - 1] *= shape[d];
        stride_[ndim_ - 1] = strides[d];
      } else {
        extent_[ndim_] = shape[d];
        stride_[ndim_] = strides[d];
        ++ndim_;
      }
    }
    if (ndim_ == 0) {
      extent_[0] = 1;
      stride_[0] = itemsize;
      ndim_ = 1;
    }
  }

  bool contiguous() const { return ndim_ == 1 && stride_[0] == itemsize_; }
  bool uniform() const { return ndim_ == 1 && stride_[0] == 0; }
  // The element of an index; of contiguous views only.
  void* at(std::int64_t index) const { return pointer(base_ + offset(index * itemsize_)); }
  std::int64_t itemsize() const { return itemsize_; }
  // The address of element 0 of the whole shape, and the axes that are left: at least one.
  std::uintptr_t base() const { return base_; }
  int ndim() const { return ndim_; }
  std::int64_t extent(int d) const { return extent_[d]; }
  std::int64_t stride(int d) const { return stride_[d]; }

  // The n elements from `index` on, converted one by one to Dst.
  template <class Src, class Dst>
  void gather(std::int64_t index, std::int64_t n, Dst* out) const {
    walk(index, n, [&out](const char* p, std::int64_t stride, std::int64_t length) {
      Dst* const begin = out;
      out += length;
      if (stride == 0) {
        Src v;
        std::memcpy(&v, p, sizeof v);
        for (std::int64_t i = 0; i < length; ++i) begin[i] = static_cast<Dst>(v);
      } else if (stride == sizeof(Src)) {
        for (std::int64_t i = 0; i < length; ++i) {
          Src v;
          std::memcpy(&v, p + i * sizeof(Src), sizeof v);
          begin[i] = static_cast<Dst>(v);
        }
      } else {
        for (std::int64_t i = 0; i < length; ++i) {
          Src v;
          std::memcpy(&v, p + i * stride, sizeof v);
          begin[i] = static_cast<Dst>(v);
        }
      }
    });
  }

  // Back again: n elements written from `index` on. The view is of an array that may be written.
  template <class T>
  void scatter(std::int64_t index, std::int64_t n, const T* values) const {
    walk(index, n, [&values](char* p, std::int64_t stride, std::int64_t length) {
      for (std::int64_t i = 0; i < length; ++i) std::memcpy(p + i * stride, values++, sizeof(T));
    });
  }

  // The bytes [low, high) of n elements from `first` on; of contiguous views only.
  void bounds(std::int64_t first, std::int64_t n, std::uintptr_t* low, std::uintptr_t* high) const {
    *low = base_ + offset(first * itemsize_);
    *high = *low + offset(n * itemsize_);
  }

  // Two indices of one byte: an output with such a view has no defined result. Sufficient, not necessary:
  // true as well for layouts that interleave without a collision, which no slicing produces.
  bool overlaps_itself() const {
    bool done[kMaxDims] = {};
    std::int64_t reach = itemsize_;  // bytes spanned by the axes so far
    for (int k = 0; k < ndim_; ++k) {
      int least = -1;
      for (int d = 0; d < ndim_; ++d) {
        if (!done[d] && (least < 0 || magnitude(stride_[d]) < magnitude(stride_[least]))) least = d;
      }
      done[least] = true;
      if (extent_[least] > 1 && magnitude(stride_[least]) < reach) return true;
      if (extent_[least] != INT64_MAX) reach += (extent_[least] - 1) * magnitude(stride_[least]);
    }
    return false;
  }

  bool same_layout(const View& other) const {
    if (base_ != other.base_ || ndim_ != other.ndim_ || itemsize_ != other.itemsize_) return false;
    for (int d = 0; d < ndim_; ++d) {
      if (stride_[d] != other.stride_[d]) return false;
      // A view without strides has no extents.
      if (d > 0 && extent_[d] != other.extent_[d]) return false;
    }
    return true;
  }

 private:
  // Addresses are integers until they are used: a contiguous view's element 0 may lie outside its array.
  static std::uintptr_t offset(std::int64_t bytes) { return static_cast<std::uintptr_t>(bytes); }
  static char* pointer(std::uintptr_t address) { return reinterpret_cast<char*>(address); }
  static std::int64_t magnitude(std::int64_t v) { return v < 0 ? -v : v; }

  // Calls f(address, stride, length) for the pieces of the last axis that hold `index` .. `index + n - 1`.
  template <class F>
  void walk(std::int64_t index, std::int64_t n, F f) const {
    const int last = ndim_ - 1;
    std::int64_t position[kMaxDims];
    std::uintptr_t p = base_;
    for (int d = last; d >= 0; --d) {
      position[d] = index % extent_[d];
      index /= extent_[d];
      p += offset(position[d] * stride_[d]);
    }
    while (n > 0) {
      const std::int64_t left = extent_[last] - position[last];
      const std::int64_t length = n < left ? n : left;
      f(pointer(p), stride_[last], length);
      n -= length;
      position[last] += length;
      p += offset(length * stride_[last]);
      for (int d = last; d > 0 && position[d] == extent_[d]; --d) {
        p += offset(stride_[d - 1] - position[d] * stride_[d]);
        position[d] = 0;
        ++position[d - 1];
      }
    }
  }

  std::uintptr_t base_;  // element 0
  std::int64_t itemsize_;
  int ndim_;  // 1 or more
  std::int64_t extent_[kMaxDims];
  std::int64_t stride_[kMaxDims];
};

}  // namespace math
}  // namespace sigmoid_ce

#endif  // SIGMOID_CE_MATH_VIEW_H_
