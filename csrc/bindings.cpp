// The Python module `_cscl_fast`: the kernel library's functions with integers for pointers.
//
// Nothing is checked here: cscl_fast/backends/cpu/*.py hands over tensors that cscl_fast/ops has
// checked. The interpreter lock is released while a kernel runs.
#include "bindings.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <new>
#include <string>
#include <tuple>
#include <utility>

#include "build_info.h"
#include "cpu/class_threshold_select.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/memory.h"
#include "cpu/threads.h"

namespace py = pybind11;
using namespace cscl::cpu;

namespace {

// Calls a kernel; Python sees a MemoryError when it has no room for its scratch.
template <typename Kernel>
void run(const Kernel& kernel) {
  try {
    kernel();
  } catch (const OutOfMemory&) {
    throw std::bad_alloc();
  }
}

void bind_soft_pseudo_labels(uintptr_t logits, int type, const Four& shape, const Four& strides,
                             int64_t out_height, int64_t out_width, bool align_corners,
                             uintptr_t thresholds, double gamma, uintptr_t soft,
                             bool soft_channels_last, uintptr_t hard, int threads) {
  SoftPseudoLabelCall call;
  call.logits = logits_view(logits, type, shape, strides, out_height, out_width, align_corners);
  call.thresholds = reinterpret_cast<const float*>(thresholds);
  call.gamma = gamma;
  call.soft = reinterpret_cast<void*>(soft);
  call.soft_channels_last = soft_channels_last;
  call.hard = reinterpret_cast<int64_t*>(hard);
  run([&] { soft_pseudo_labels(call, threads); });
}

LossResult loss_result(uintptr_t loss, uintptr_t count, uintptr_t gradient, bool channels_last,
                       bool of_mean, float gradient_scale) {
  LossResult result;
  result.loss = reinterpret_cast<float*>(loss);
  result.count = reinterpret_cast<int64_t*>(count);
  result.gradient = reinterpret_cast<float*>(gradient);
  result.gradient_channels_last = channels_last;
  result.gradient_of_mean = of_mean;
  result.gradient_scale = of_mean ? 1.0f : gradient_scale;
  return result;
}

// Whether all labels were in range.
bool bind_upsampled_cross_entropy(uintptr_t logits, int type, const Four& shape,
                                  const Four& strides, int64_t out_height, int64_t out_width,
                                  bool align_corners, uintptr_t labels, int64_t ignore_index,
                                  uintptr_t loss, uintptr_t count, uintptr_t gradient,
                                  bool channels_last, bool of_mean, float gradient_scale,
                                  int threads) {
  CrossEntropyCall call;
  call.logits = logits_view(logits, type, shape, strides, out_height, out_width, align_corners);
  call.labels = reinterpret_cast<const int64_t*>(labels);
  call.ignore_index = ignore_index;
  bool in_range = true;
  call.labels_in_range = &in_range;
  call.result = loss_result(loss, count, gradient, channels_last, of_mean, gradient_scale);
  run([&] { upsampled_cross_entropy(call, threads); });
  return in_range;
}

void bind_pseudo_label_loss(uintptr_t logits, int type, const Four& shape, const Four& strides,
                            int64_t out_height, int64_t out_width, bool align_corners,
                            uintptr_t label_logits, const Four& label_strides, uintptr_t thresholds,
                            double gamma, uintptr_t loss, uintptr_t count, uintptr_t gradient,
                            bool channels_last, bool of_mean, float gradient_scale, int threads) {
  PseudoLabelLossCall call;
  call.logits = logits_view(logits, type, shape, strides, out_height, out_width, align_corners);
  call.label_logits =
      logits_view(label_logits, type, shape, label_strides, out_height, out_width, align_corners);
  call.thresholds = reinterpret_cast<const float*>(thresholds);
  call.gamma = gamma;
  call.result = loss_result(loss, count, gradient, channels_last, of_mean, gradient_scale);
  run([&] { pseudo_label_loss(call, threads); });
}

// False: a label is neither a class nor ignored.
bool bind_transfer_reward(uintptr_t gated, const Four& gated_strides, uintptr_t plain,
                          const Four& plain_strides, int type, const Four& shape, uintptr_t labels,
                          uintptr_t reward, uintptr_t valid, int threads) {
  bool labels_in_range = true;
  TransferRewardCall call;
  const int64_t height = std::get<2>(shape), width = std::get<3>(shape);
  call.gated = logits_view(gated, type, shape, gated_strides, height, width, false);
  call.plain = logits_view(plain, type, shape, plain_strides, height, width, false);
  call.labels = reinterpret_cast<const int64_t*>(labels);
  call.reward = reinterpret_cast<float*>(reward);
  call.valid = reinterpret_cast<bool*>(valid);
  call.labels_in_range = &labels_in_range;
  run([&] { transfer_reward(call, threads); });
  return labels_in_range;
}

void bind_class_threshold_keys(uintptr_t logits, int type, const Four& shape, const Four& strides,
                               int64_t out_height, int64_t out_width, bool align_corners,
                               uintptr_t keys, int threads) {
  ClassThresholdKeysCall call;
  call.logits = logits_view(logits, type, shape, strides, out_height, out_width, align_corners);
  call.keys = reinterpret_cast<int32_t*>(keys);
  run([&] { class_threshold_keys(call, threads); });
}

void bind_class_threshold_update(uintptr_t logits, int type, const Four& shape, const Four& strides,
                                 int64_t out_height, int64_t out_width, bool align_corners,
                                 uintptr_t histogram, int threads) {
  ClassThresholdUpdateCall call;
  call.logits = logits_view(logits, type, shape, strides, out_height, out_width, align_corners);
  call.histogram = reinterpret_cast<int64_t*>(histogram);
  run([&] { class_threshold_update(call, threads); });
}

void bind_class_thresholds(uintptr_t logits, int type, const Four& shape, const Four& strides,
                           int64_t out_height, int64_t out_width, bool align_corners,
                           double portion, uintptr_t thresholds, int threads) {
  ClassThresholdsCall call;
  call.logits = logits_view(logits, type, shape, strides, out_height, out_width, align_corners);
  call.portion = portion;
  call.thresholds = reinterpret_cast<float*>(thresholds);
  run([&] { class_thresholds(call, threads); });
}

void bind_thresholds_of_keys(uintptr_t keys, int64_t count, int classes, double portion,
                             uintptr_t thresholds) {
  select_keys(reinterpret_cast<const int32_t*>(keys), count, classes, portion,
              reinterpret_cast<float*>(thresholds));
}

void bind_thresholds_of_histogram(uintptr_t histogram, uintptr_t other, int classes,
                                  const std::vector<double>& portions, uintptr_t thresholds,
                                  int threads) {
  HistogramScan scan;
  scan.histogram = reinterpret_cast<const int64_t*>(histogram);
  scan.other = reinterpret_cast<const int64_t*>(other);
  scan.classes = classes;
  scan.portions = portions.data();
  scan.portion_count = static_cast<int64_t>(portions.size());
  scan.thresholds = reinterpret_cast<float*>(thresholds);
  thresholds_of_histogram(scan, threads);
}

LabelledFeatures labelled_features(const Labelled& side, bool* in_range) {
  const auto& [features, type, shape, strides, labels, labels_type, classes, labels_strides, row,
               weight] = side;
  const int64_t height = std::get<2>(shape), width = std::get<3>(shape);
  const Four labels_shape{std::get<0>(shape), classes, height, width};
  LabelledFeatures result;
  result.features = logits_view(features, type, shape, strides, height, width, false);
  result.labels = logits_view(labels, labels_type < 0 ? 0 : labels_type, labels_shape,
                              labels_strides, height, width, false);
  result.hard = labels_type < 0;
  result.row = reinterpret_cast<int32_t*>(row);
  result.weight = reinterpret_cast<float*>(weight);
  result.in_range = in_range;
  return result;
}

// Whether every label was in range.
bool bind_class_centroids(const Labelled& side, uintptr_t centroids, uintptr_t mass, int threads) {
  bool in_range = true;
  ClassCentroidsCall call;
  call.side = labelled_features(side, &in_range);
  call.centroids = reinterpret_cast<float*>(centroids);
  call.mass = reinterpret_cast<float*>(mass);
  run([&] { class_centroids(call, threads); });
  return in_range;
}

void bind_centroid_gradient(uintptr_t slope, uintptr_t mass, uintptr_t scale, uintptr_t row,
                            uintptr_t weight, int64_t batch, int64_t classes, int64_t channels,
                            int64_t plane, uintptr_t gradient, int type, bool channels_last,
                            int threads) {
  CentroidGradientCall call;
  call.slope = reinterpret_cast<const float*>(slope);
  call.mass = reinterpret_cast<const float*>(mass);
  call.scale = reinterpret_cast<const float*>(scale);
  call.row = reinterpret_cast<const int32_t*>(row);
  call.weight = reinterpret_cast<const float*>(weight);
  call.batch = batch;
  call.classes = classes;
  call.channels = channels;
  call.plane = plane;
  call.gradient = reinterpret_cast<void*>(gradient);
  call.type = static_cast<DataType>(type);
  call.channels_last = channels_last;
  centroid_gradient(call, threads);
}

// Whether every label of the source and of the target was in range.
std::pair<bool, bool> bind_symmetric_soft_divergence(const Labelled& source, const Labelled& target,
                                                     bool softmax, double eps, uintptr_t loss,
                                                     uintptr_t source_slope, uintptr_t target_slope,
                                                     int threads) {
  bool source_in_range = true, target_in_range = true;
  SymmetricSoftDivergenceCall call;
  call.source = labelled_features(source, &source_in_range);
  call.target = labelled_features(target, &target_in_range);
  call.softmax = softmax;
  call.eps = eps;
  call.loss = reinterpret_cast<float*>(loss);
  call.source_slope = reinterpret_cast<float*>(source_slope);
  call.target_slope = reinterpret_cast<float*>(target_slope);
  run([&] { symmetric_soft_divergence(call, threads); });
  return {source_in_range, target_in_range};
}

// Memory for a large result, as something that torch.frombuffer takes: the block goes back when the
// last tensor on it is gone.
class ResultMemory {
 public:
  explicit ResultMemory(size_t bytes) : block_(take_block(bytes)), bytes_(bytes) {
    if (block_.data == nullptr) throw std::bad_alloc();
  }
  ~ResultMemory() { give_back_block(block_); }
  ResultMemory(const ResultMemory&) = delete;
  ResultMemory& operator=(const ResultMemory&) = delete;

  py::buffer_info buffer() {
    return py::buffer_info(static_cast<uint8_t*>(block_.data), static_cast<py::ssize_t>(bytes_));
  }

 private:
  Block block_;
  size_t bytes_;
};

py::dict build_info() {
  py::dict info;
  info["version"] = CSCL_VERSION;
  info["source_digest"] = CSCL_SOURCE_DIGEST;
  info["compiler"] = CSCL_COMPILER;
  info["build_type"] = CSCL_BUILD_TYPE;
  info["cuda"] = CSCL_CUDA_STATUS;
  info["pybind11"] =
      std::to_string(PYBIND11_VERSION_MAJOR) + "." + std::to_string(PYBIND11_VERSION_MINOR);
  return info;
}

}  // namespace

#if defined(CSCL_HAVE_CUDA)
void bind_cuda(py::module_& module);  // bindings_cuda.cpp
#endif

PYBIND11_MODULE(_cscl_fast, module) {
  module.doc() = "The compiled kernels of cscl_fast.";
  module.def("build_info", &build_info);
  module.def("compiled_isas", &compiled_isas);
  module.def("supported_isas", &supported_isas);
  module.def("active_isa", [] { return isa_name(active_isa()); });
  module.def("adopt_openmp",
             [](const std::string& library) { return adopt_openmp(library.c_str()); });
  module.def("openmp_runtime", &openmp_runtime);
  py::class_<ResultMemory>(module, "ResultMemory", py::buffer_protocol())
      .def(py::init<size_t>())
      .def_buffer(&ResultMemory::buffer);
  module.def("cached_bytes", &block_cache_size);
  module.def("release_cache", &release_block_cache);
  // The operators that have a kernel here, by their names in cscl_fast.ops.
  module.attr("cpu_operators") = py::make_tuple(
      "soft_pseudo_labels", "upsampled_cross_entropy", "pseudo_label_loss", "class_thresholds",
      "class_centroids", "symmetric_soft_divergence", "transfer_reward");
  module.def("soft_pseudo_labels", &bind_soft_pseudo_labels,
             py::call_guard<py::gil_scoped_release>());
  module.def("upsampled_cross_entropy", &bind_upsampled_cross_entropy,
             py::call_guard<py::gil_scoped_release>());
  module.def("pseudo_label_loss", &bind_pseudo_label_loss,
             py::call_guard<py::gil_scoped_release>());
  module.def("transfer_reward", &bind_transfer_reward, py::call_guard<py::gil_scoped_release>());
  module.def("class_threshold_keys", &bind_class_threshold_keys,
             py::call_guard<py::gil_scoped_release>());
  module.def("class_threshold_update", &bind_class_threshold_update,
             py::call_guard<py::gil_scoped_release>());
  module.def("class_thresholds", &bind_class_thresholds, py::call_guard<py::gil_scoped_release>());
  module.def("thresholds_of_keys", &bind_thresholds_of_keys,
             py::call_guard<py::gil_scoped_release>());
  module.def("thresholds_of_histogram", &bind_thresholds_of_histogram,
             py::call_guard<py::gil_scoped_release>());
  module.def("class_centroids", &bind_class_centroids, py::call_guard<py::gil_scoped_release>());
  module.def("centroid_gradient", &bind_centroid_gradient,
             py::call_guard<py::gil_scoped_release>());
  module.def("symmetric_soft_divergence", &bind_symmetric_soft_divergence,
             py::call_guard<py::gil_scoped_release>());
#if defined(CSCL_HAVE_CUDA)
  py::module_ cuda = module.def_submodule("cuda", "The CUDA kernels.");
  bind_cuda(cuda);
#endif
}
