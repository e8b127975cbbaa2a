// Runs nets of two inputs (scores, targets) and one output (loss) in double precision, as a gtest
// program for a real Caffe (tests/test_caffe_layer.py builds it and makes the cases).
//
// SIGMOID_CE_CASES is a file of cases, each: the length of a NetParameter's text and the number of
// elements (int64), the text, the scores and the targets (float64). To SIGMOID_CE_RESULTS go, per
// case, the loss blob, what Forward returns (the weighted loss), and the gradient (float64). Threads
// that run all cases at once must get the same bits.

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "caffe/net.hpp"
#include "caffe/test/test_caffe_main.hpp"
#include "google/protobuf/text_format.h"
#include "gtest/gtest.h"

namespace caffe {
namespace {

struct Case {
  NetParameter net;
  std::vector<double> scores, targets;
};

std::vector<Case> read(const char* path) {
  std::ifstream file(path, std::ios::binary);
  CHECK(file) << path;
  std::vector<Case> cases;
  std::int64_t sizes[2];
  while (file.read(reinterpret_cast<char*>(sizes), sizeof(sizes))) {
    Case one;
    std::string text(static_cast<size_t>(sizes[0]), ' ');
    file.read(&text[0], sizes[0]);
    CHECK(google::protobuf::TextFormat::ParseFromString(text, &one.net)) << text;
    for (std::vector<double>* array : {&one.scores, &one.targets}) {
      array->resize(static_cast<size_t>(sizes[1]));
      file.read(reinterpret_cast<char*>(array->data()),
                static_cast<std::streamsize>(array->size() * sizeof(double)));
    }
    CHECK(file) << "cut off";
    cases.push_back(one);
  }
  return cases;
}

void set(Net<double>* net, const char* name, const std::vector<double>& values) {
  const boost::shared_ptr<Blob<double>> blob = net->blob_by_name(name);
  CHECK_EQ(static_cast<size_t>(blob->count()), values.size());
  std::copy(values.begin(), values.end(), blob->mutable_cpu_data());
}

std::vector<double> run(const std::vector<Case>& cases) {
  std::vector<double> results;
  for (const Case& one : cases) {
    Net<double> net(one.net);
    set(&net, "scores", one.scores);
    set(&net, "targets", one.targets);
    double weighted = 0;
    net.Forward(&weighted);
    net.Backward();
    results.push_back(net.blob_by_name("loss")->cpu_data()[0]);
    results.push_back(weighted);
    const double* gradient = net.blob_by_name("scores")->cpu_diff();
    results.insert(results.end(), gradient, gradient + one.scores.size());
  }
  return results;
}

// The name goes with the tests that run on the CPU.
template <typename TypeParam>
class NetsTest : public MultiDeviceTest<TypeParam> {};
typedef ::testing::Types<CPUDevice<double>> DoubleOnCPU;
TYPED_TEST_CASE(NetsTest, DoubleOnCPU);

TYPED_TEST(NetsTest, Run) {
  const char* cases_path = std::getenv("SIGMOID_CE_CASES");
  const char* results_path = std::getenv("SIGMOID_CE_RESULTS");
  ASSERT_TRUE(cases_path != nullptr && results_path != nullptr);
  const std::vector<Case> cases = read(cases_path);
  ASSERT_FALSE(cases.empty());
  const std::vector<double> results = run(cases);

  std::vector<std::vector<double>> of_threads(3);
  std::vector<std::thread> threads;
  for (std::vector<double>& own : of_threads) {
    threads.emplace_back([&own, &cases] { own = run(cases); });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::vector<double>& own : of_threads) {
    ASSERT_EQ(results.size(), own.size());
    EXPECT_EQ(0, std::memcmp(results.data(), own.data(), own.size() * sizeof(double)));
  }

  std::ofstream file(results_path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(results.data()),
             static_cast<std::streamsize>(results.size() * sizeof(double)));
  ASSERT_TRUE(file.good());
}

}  // namespace
}  // namespace caffe
