# The plugin for a Caffe that is built already (docs/dropin.md); `sigmoid-ce caffe plugin` makes the same.
#
#   cmake -S . -B build -DSIGMOID_CE_CAFFE_LIBRARY=<libcaffe.so>
#         "-DSIGMOID_CE_CAFFE_INCLUDE_DIRS=<caffe>/include;<folder of caffe/proto/caffe.pb.h>"
#   (and the folders of cuBLAS and cuRAND, where Caffe has GPU code and they are not in the toolkit's own)
#   cmake --build build --target sigmoid_ce_caffe_plugin
foreach(header caffe/layer_factory.hpp caffe/proto/caffe.pb.h)
  unset(found CACHE)
  find_path(found "${header}" PATHS ${SIGMOID_CE_CAFFE_INCLUDE_DIRS} NO_DEFAULT_PATH)
  if(NOT found)
    message(FATAL_ERROR "SIGMOID_CE_CAFFE_INCLUDE_DIRS: no ${header} in '${SIGMOID_CE_CAFFE_INCLUDE_DIRS}'")
  endif()
endforeach()
unset(found CACHE)

# CPU_ONLY changes classes, so it must be as in the library.
execute_process(COMMAND "${CMAKE_NM}" -D --defined-only "${SIGMOID_CE_CAFFE_LIBRARY}"
  OUTPUT_VARIABLE symbols ERROR_VARIABLE problem RESULT_VARIABLE status)
if(NOT status EQUAL 0 OR NOT symbols MATCHES "_ZN5caffe5LayerIfE")
  message(FATAL_ERROR "SIGMOID_CE_CAFFE_LIBRARY: expected libcaffe.so, or the _caffe.so that has Caffe in it, "
    "got '${SIGMOID_CE_CAFFE_LIBRARY}' ${problem}")
endif()

# One source per file of the overlay, which is what goes into a tree as well.
file(GLOB overlay CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/caffe/src/caffe/util/sigmoid_ce*.cpp")
add_library(sigmoid_ce_caffe_plugin MODULE EXCLUDE_FROM_ALL caffe/plugin/sigmoid_ce_plugin.cpp ${overlay})
# The layer registry is one for the process only while its symbol is visible.
set_target_properties(sigmoid_ce_caffe_plugin PROPERTIES
  PREFIX "" CXX_VISIBILITY_PRESET default VISIBILITY_INLINES_HIDDEN OFF)
target_include_directories(sigmoid_ce_caffe_plugin PRIVATE caffe/include)
target_include_directories(sigmoid_ce_caffe_plugin SYSTEM PRIVATE ${SIGMOID_CE_CAFFE_INCLUDE_DIRS})
# The kernels' namespace is renamed: not to be mixed up with those of a Caffe that has them in its tree.
target_compile_definitions(sigmoid_ce_caffe_plugin PRIVATE sigmoid_ce=sigmoid_ce_plugin)
if(symbols MATCHES "_ZN5caffe16caffe_gpu_memcpyEmPKvPv")
  # It has GPU code. CMAKE_CUDA_ARCHITECTURES says for which GPUs, CUDACXX which nvcc.
  if(NOT CMAKE_CUDA_COMPILER)
    include(CheckLanguage)
    check_language(CUDA)
    if(NOT CMAKE_CUDA_COMPILER)
      message(FATAL_ERROR "SIGMOID_CE_CAFFE_LIBRARY: '${SIGMOID_CE_CAFFE_LIBRARY}' has GPU code, for which the plugin "
        "needs CUDA's compiler; put nvcc on the PATH, or name it in CUDACXX")
    endif()
    enable_language(CUDA)
  endif()
  find_package(CUDAToolkit REQUIRED)
  target_sources(sigmoid_ce_caffe_plugin PRIVATE caffe/src/caffe/util/sigmoid_ce_cuda.cu)
  set_target_properties(sigmoid_ce_caffe_plugin PROPERTIES
    CUDA_STANDARD 14 CUDA_STANDARD_REQUIRED ON CUDA_VISIBILITY_PRESET default)
  # The runtime's functions stay inside: others of that name are the host's.
  target_link_libraries(sigmoid_ce_caffe_plugin PRIVATE CUDA::cudart_static)
  target_link_options(sigmoid_ce_caffe_plugin PRIVATE "LINKER:--exclude-libs,libcudart_static.a")
else()
  target_compile_definitions(sigmoid_ce_caffe_plugin PRIVATE CPU_ONLY)
endif()
target_link_libraries(sigmoid_ce_caffe_plugin PRIVATE
  "${SIGMOID_CE_CAFFE_LIBRARY}" glog ${CMAKE_DL_LIBS} Threads::Threads)
