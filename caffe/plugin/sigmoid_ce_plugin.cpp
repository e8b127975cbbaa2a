// The layer as a shared library for a Caffe that is built already: loading it
// registers the layer, in the place of the built-in one or under a type name of
// its own. `sigmoid-ce caffe plugin` builds it, or by hand, with the CPU_ONLY
// that Caffe was built with:
//
//   g++ -std=c++14 -O2 -shared -fPIC [-DCPU_ONLY] -Dsigmoid_ce=sigmoid_ce_plugin
//       -Iinclude -I<caffe>/include -I<folder of caffe/proto/caffe.pb.h>
//       plugin/sigmoid_ce_plugin.cpp src/caffe/util/sigmoid_ce*.cpp
//       -o plugin.so -L<caffe>/lib -lcaffe -lglog
//
// For a Caffe with GPU code there is one more file, which only nvcc compiles, and
// the runtime that it wants, whose functions must stay inside:
//
//   nvcc -std=c++14 -O2 -Xcompiler -fPIC -Dsigmoid_ce=sigmoid_ce_plugin -Iinclude
//       -c src/caffe/util/sigmoid_ce_cuda.cu
//   g++ ... sigmoid_ce_cuda.o -I<cuda>/include -L<cuda>/lib64 -lcudart_static
//       -Wl,--exclude-libs,libcudart_static.a -lpthread -lrt -ldl
//
// -Dsigmoid_ce renames the kernels' namespace, so that they are not mixed up with
// those of a Caffe that has the layer in its tree, of another version perhaps.
//
// SIGMOID_CE_PLUGIN_TYPE in the environment is the type name to register; by
// default it is the built-in layer's, which is replaced.
//
// Where something is wrong the process ends with a message, since LD_PRELOAD has
// no other way to tell. With SIGMOID_CE_PLUGIN_QUIET in the environment the
// message is left for sigmoid_ce_plugin_error() instead.
#include <dlfcn.h>

#include <cstdlib>
#include <iostream>
#include <string>

// The class needs a name of its own: the built-in one's is a global symbol of
// the same name and another layout.
#define SIGMOID_CE_PLUGIN
#define SigmoidCrossEntropyLossLayer SigmoidCEPluginLayer

#include "caffe/layer_factory.hpp"

#include "../src/caffe/layers/sigmoid_cross_entropy_loss_layer.cpp"
#ifndef CPU_ONLY
#include "../src/caffe/layers/sigmoid_cross_entropy_loss_layer.cu"
#endif

namespace {

const char kBuiltIn[] = "SigmoidCrossEntropyLoss";

// The type to register, as it was when the plugin was loaded.
const std::string& Type() {
  static const char* const asked = std::getenv("SIGMOID_CE_PLUGIN_TYPE");
  static const std::string* const type =
      new std::string(asked != nullptr && *asked != '\0' ? asked : kBuiltIn);
  return *type;
}

template <typename Dtype>
caffe::shared_ptr<caffe::Layer<Dtype> > Create(
    const caffe::LayerParameter& param) {
  return caffe::shared_ptr<caffe::Layer<Dtype> >(
      new caffe::SigmoidCEPluginLayer<Dtype>(param));
}

// Only a Caffe with GPU code has it.
bool HostHasGPU() {
  return dlsym(RTLD_DEFAULT, "_ZN5caffe16caffe_gpu_memcpyEmPKvPv") != nullptr;
}

// Why the layer cannot be registered; empty where it can.
template <typename Dtype>
std::string Obstacle() {
  auto& registry = caffe::LayerRegistry<Dtype>::Registry();
  // Every Caffe has it. A registry without it is not the one that Caffe looks
  // into: the symbol is shared only if the plugin was compiled with visible,
  // unique symbols, and linked against the library that is loaded.
  if (registry.count("InnerProduct") == 0) {
    return "the layer registry of Caffe was not reached. Build the plugin with "
           "GCC, without -fvisibility=hidden and -fno-gnu-unique, against the "
           "libcaffe that is loaded";
  }
  const auto found = registry.find(Type());
  if (Type() == kBuiltIn) {
    if (found == registry.end()) {
      return "this Caffe has no layer SigmoidCrossEntropyLoss to replace";
    }
  } else if (found != registry.end() && found->second != &Create<Dtype>) {
    return "the layer type " + Type() +
           " is registered already, by another library or a copy of this one";
  }
  return std::string();
}

std::string& Error() {
  static std::string* error = new std::string;
  return *error;
}

__attribute__((constructor)) void Load() {
#ifdef CPU_ONLY
  const bool gpu = false;
#else
  const bool gpu = true;
#endif
  if (gpu != HostHasGPU()) {
    Error() = gpu ? "it was built with GPU code, and this Caffe is CPU_ONLY: "
                    "classes differ. Build it with CPU_ONLY"
                  : "it was built CPU_ONLY, and this Caffe has GPU code: classes "
                    "differ. Build it without CPU_ONLY";
  }
  if (Error().empty()) { Error() = Obstacle<float>(); }
  if (Error().empty()) { Error() = Obstacle<double>(); }
  if (Error().empty()) {
    caffe::LayerRegistry<float>::Registry()[Type()] = &Create<float>;
    caffe::LayerRegistry<double>::Registry()[Type()] = &Create<double>;
  }
  if (!Error().empty() && std::getenv("SIGMOID_CE_PLUGIN_QUIET") == nullptr) {
    std::cerr << "sigmoid_ce plugin: " << Error() << std::endl;
    std::_Exit(EXIT_FAILURE);
  }
}

}  // namespace

// Visible whatever the flags, for the message about the flags.
#define SIGMOID_CE_VISIBLE extern "C" __attribute__((visibility("default")))

// Why the plugin did not register its layer; empty when it did.
SIGMOID_CE_VISIBLE const char* sigmoid_ce_plugin_error() {
  return Error().c_str();
}
SIGMOID_CE_VISIBLE const char* sigmoid_ce_plugin_type() {
  return Type().c_str();
}
