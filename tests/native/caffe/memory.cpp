// Allocations and memory of Caffe's sigmoid cross-entropy layer, as a gtest program for a real
// Caffe (tests/test_caffe_layer.py builds it). Every allocation of the process is seen, in whichever
// library: the C library's functions are replaced by ones that count and hand on.

#include <errno.h>
#include <malloc.h>

#include <atomic>
#include <string>
#include <vector>

#include "caffe/blob.hpp"
#include "caffe/layer.hpp"
#include "caffe/layer_factory.hpp"
#include "caffe/test/test_caffe_main.hpp"
#include "google/protobuf/text_format.h"
#include "gtest/gtest.h"

extern "C" {
void* __libc_malloc(size_t size);
void* __libc_calloc(size_t count, size_t size);
void* __libc_realloc(void* old, size_t size);
void* __libc_memalign(size_t alignment, size_t size);
void __libc_free(void* memory);
}

namespace {

std::atomic<long> g_allocations(0);  // since the start
std::atomic<long> g_bytes(0);        // in use now

void* counted(void* memory) {
  g_allocations += 1;
  g_bytes += static_cast<long>(malloc_usable_size(memory));
  return memory;
}

void uncounted(void* memory) { g_bytes -= static_cast<long>(malloc_usable_size(memory)); }

}  // namespace

extern "C" {
void* malloc(size_t size) { return counted(__libc_malloc(size)); }
void* calloc(size_t count, size_t size) { return counted(__libc_calloc(count, size)); }
void* memalign(size_t alignment, size_t size) { return counted(__libc_memalign(alignment, size)); }
void* aligned_alloc(size_t alignment, size_t size) { return memalign(alignment, size); }

int posix_memalign(void** result, size_t alignment, size_t size) {
  *result = memalign(alignment, size);
  return *result == nullptr ? ENOMEM : 0;
}

void* realloc(void* old, size_t size) {
  uncounted(old);
  return counted(__libc_realloc(old, size));
}

void free(void* memory) {
  uncounted(memory);
  __libc_free(memory);
}
}

namespace caffe {

template <typename TypeParam>
class MemoryTest : public MultiDeviceTest<TypeParam> {
 protected:
  typedef typename TypeParam::Dtype Dtype;

  // Threads share the work from 32768 elements on.
  MemoryTest() : scores_(16, 3, 60, 50), targets_(16, 3, 60, 50), weights_(16, 1, 1, 1) {
    fill(&scores_, 0.37, -3);
    fill(&targets_, 0.5, 0);
    fill(&weights_, 0.1, 0.5);
    bottom_ = {&scores_, &targets_};
    top_ = {&loss_};
    scores_.mutable_cpu_diff();
  }

  static void fill(Blob<Dtype>* blob, double step, double start) {
    Dtype* data = blob->mutable_cpu_data();
    for (int i = 0; i < blob->count(); ++i) data[i] = start + step * (i % 17);
  }

  boost::shared_ptr<Layer<Dtype>> make(const std::string& options) {
    LayerParameter param;
    CHECK(google::protobuf::TextFormat::ParseFromString(options, &param)) << options;
    param.set_type("SigmoidCrossEntropyLoss");
    boost::shared_ptr<Layer<Dtype>> layer = LayerRegistry<Dtype>::CreateLayer(param);
    layer->SetUp(bottom_, top_);
    iterate(layer.get());
    return layer;
  }

  void iterate(Layer<Dtype>* layer) {
    std::vector<bool>& propagate_down = propagate_down_[bottom_.size() - 2];
    layer->Forward(bottom_, top_);
    layer->Backward(top_, propagate_down, bottom_);
  }

  // `counts`: how often a call counts targets, in tables of its own.
  void check(const std::string& options, int counts = 0) {
    SCOPED_TRACE(options);
    boost::shared_ptr<Layer<Dtype>> layer = make(options);
    const long before = g_allocations;
    const long bytes_before = g_bytes;
    for (int i = 0; i < 5; ++i) iterate(layer.get());
    const long after = g_allocations;
    EXPECT_EQ(5 * 2 * counts, after - before) << "allocations in five iterations";
    EXPECT_EQ(0, g_bytes - bytes_before);

    // Buffers of the thread, if any, are there by now: this is what each further layer takes.
    const int kLayers = 8;
    std::vector<boost::shared_ptr<Layer<Dtype>>> layers;
    layers.reserve(kLayers);
    const long bytes = g_bytes;
    for (int i = 0; i < kLayers; ++i) layers.push_back(make(options));
    const long each = (g_bytes - bytes) / kLayers;
    EXPECT_LT(each, 64 * 1024);
    EXPECT_GT(each, 0);  // so it is really seen
    printf("%ld bytes per layer with %s\n", each, options.c_str());
    // A layer with two arrays of the input's size would fail above.
    ASSERT_GT(2 * scores_.count() * sizeof(Dtype), 10u * 64 * 1024);
  }

  Blob<Dtype> scores_, targets_, weights_, loss_, losses_;
  std::vector<Blob<Dtype>*> bottom_, top_;
  std::vector<bool> propagate_down_[2] = {{true, false}, {true, false, false}};
};

TYPED_TEST_CASE(MemoryTest, TestDtypesAndDevices);

TYPED_TEST(MemoryTest, Plain) {
  this->check("");
  this->check("loss_param { normalization: FULL }");
}

TYPED_TEST(MemoryTest, Ignore) {
  this->check("loss_param { ignore_label: 1 normalization: VALID }");
}

TYPED_TEST(MemoryTest, Weights) {
  this->check("python_param { param_str: '{\"pos_weight\": 3}' }");
  this->check("python_param { param_str: '{\"pos_weight\": [3, 2, 1], \"weight\": 2}' }");
  this->bottom_.push_back(&this->weights_);
  this->check("python_param { param_str: '{\"pos_weight\": [3, 2, 1]}' }");
}

TYPED_TEST(MemoryTest, Family) {
  this->check("python_param { param_str: '{\"gamma\": 2, \"alpha\": 0.25}' }");
  this->check("python_param { param_str: '{\"weight\": [3, 2, 1], \"uncertain\": \"ignore\"}' }");
  this->check("python_param { param_str: '{\"label_smoothing\": 0.1, \"negative_scale\": 2}' }");
  // Two passes, but Backward does not count again.
  this->check("python_param { param_str: '{\"normalization\": \"foreground\"}' }", 1);
  this->check("python_param { param_str: '{\"balance\": \"image\"}' }", 1);
  this->check(
      "python_param { param_str: '{\"balance\": \"batch\", \"balance_per_channel\": true}' }", 1);
}

TYPED_TEST(MemoryTest, SecondTop) {
  this->top_.push_back(&this->losses_);
  this->losses_.Reshape(this->scores_.shape());
  this->losses_.mutable_cpu_data();
  this->check("");
  this->check("python_param { param_str: '{\"balance\": \"image\"}' }", 1);
}

TYPED_TEST(MemoryTest, SmallerShapes) {
  boost::shared_ptr<Layer<typename TypeParam::Dtype>> layer = this->make("");
  this->scores_.Reshape({2, 3, 4, 5});
  this->targets_.Reshape({2, 3, 4, 5});
  const long before = g_allocations;
  this->iterate(layer.get());
  const long after = g_allocations;
  EXPECT_EQ(0, after - before);
}

}  // namespace caffe
