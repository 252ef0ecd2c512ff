// The submodule `_cscl_fast.cuda`: the CUDA kernels with integers for device pointers.
//
// The last argument of every function is (stream, device, scratch): a cudaStream_t as an integer,
// the device's index, and a function that gives so many bytes of device memory. Nothing waits for
// the device, so the interpreter lock stays where it is: the scratch is asked for under it.
#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <utility>
#include <vector>

#include "bindings.h"
#include "cuda/kernels.h"
#if defined(CSCL_HAVE_CUDA_ON_CPU)
#include <cuda_on_cpu/control.h>
#endif

namespace py = pybind11;
using namespace cscl::cuda;
using cscl::DataType;
using cscl::LogitsView;

namespace {

// (logits, type, shape, strides, H, W, align_corners).
using Logits = std::tuple<uintptr_t, int, Four, Four, int64_t, int64_t, bool>;
// (stream, device, scratch).
using Place = std::tuple<uintptr_t, int, std::function<uintptr_t(size_t)>>;

template <typename T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

LogitsView view_of(const Logits& logits) { return std::apply(logits_view, logits); }

Context context_of(const Place& place) {
  const auto& [stream, device, scratch] = place;
  return {pointer<void>(stream), device,
          [&scratch = scratch](size_t bytes) { return pointer<void>(scratch(bytes)); }};
}

void bind_soft_pseudo_labels(const Logits& logits, uintptr_t thresholds, double gamma,
                             uintptr_t soft, bool channels_last, uintptr_t hard,
                             const Place& place) {
  soft_pseudo_labels({view_of(logits), pointer<const float>(thresholds), gamma, pointer<void>(soft),
                      channels_last, pointer<int64_t>(hard)},
                     context_of(place));
}

// (loss, count, gradient or 0, channels_last).
using Loss = std::tuple<uintptr_t, uintptr_t, uintptr_t, bool>;
LossResult loss_of(const Loss& result) {
  const auto& [loss, count, gradient, channels_last] = result;
  return {pointer<float>(loss), pointer<int64_t>(count), pointer<float>(gradient), channels_last};
}

// (scale, gradient, type, channels_last).
using Gradient = std::tuple<uintptr_t, uintptr_t, int, bool>;
OwnSizeGradient gradient_of(const Gradient& result) {
  const auto& [scale, gradient, type, channels_last] = result;
  return {pointer<const float>(scale), pointer<void>(gradient), static_cast<DataType>(type),
          channels_last};
}

void bind_cross_entropy(const Logits& logits, uintptr_t labels, int64_t ignore_index,
                        const Loss& result, const Place& place) {
  upsampled_cross_entropy({view_of(logits), pointer<const int64_t>(labels), ignore_index},
                          loss_of(result), context_of(place));
}
void bind_cross_entropy_gradient(const Logits& logits, uintptr_t labels, int64_t ignore_index,
                                 const Gradient& result, const Place& place) {
  upsampled_cross_entropy_gradient({view_of(logits), pointer<const int64_t>(labels), ignore_index},
                                   gradient_of(result), context_of(place));
}

// `label_logits`: their address and strides; 0: the logits give their own labels.
PseudoLabelLossCall self_training(const Logits& logits, uintptr_t label_logits,
                                  const Four& label_strides, uintptr_t thresholds, double gamma) {
  PseudoLabelLossCall call;
  call.logits = view_of(logits);
  call.label_logits = call.logits;
  call.label_logits.data = pointer<const void>(label_logits);
  std::tie(call.label_logits.stride_batch, call.label_logits.stride_class,
           call.label_logits.stride_row, call.label_logits.stride_column) = label_strides;
  call.thresholds = pointer<const float>(thresholds);
  call.gamma = gamma;
  return call;
}
void bind_pseudo_label_loss(const Logits& logits, uintptr_t label_logits, const Four& label_strides,
                            uintptr_t thresholds, double gamma, const Loss& result,
                            const Place& place) {
  pseudo_label_loss(self_training(logits, label_logits, label_strides, thresholds, gamma),
                    loss_of(result), context_of(place));
}
void bind_pseudo_label_loss_gradient(const Logits& logits, uintptr_t label_logits,
                                     const Four& label_strides, uintptr_t thresholds, double gamma,
                                     const Gradient& result, const Place& place) {
  pseudo_label_loss_gradient(self_training(logits, label_logits, label_strides, thresholds, gamma),
                             gradient_of(result), context_of(place));
}

void bind_transfer_reward(const Logits& gated, uintptr_t plain, const Four& plain_strides,
                          uintptr_t labels, uintptr_t reward, uintptr_t valid, const Place& place) {
  TransferRewardCall call;
  call.gated = call.plain = view_of(gated);
  call.plain.data = pointer<const void>(plain);
  std::tie(call.plain.stride_batch, call.plain.stride_class, call.plain.stride_row,
           call.plain.stride_column) = plain_strides;
  call.labels = pointer<const int64_t>(labels);
  call.reward = pointer<float>(reward);
  call.valid = pointer<bool>(valid);
  transfer_reward(call, context_of(place));
}

void bind_class_threshold_update(const Logits& logits, uintptr_t histogram, const Place& place) {
  class_threshold_update({view_of(logits), pointer<int64_t>(histogram)}, context_of(place));
}
void bind_thresholds_of_histogram(uintptr_t histogram, uintptr_t other, int64_t classes,
                                  const std::vector<double>& portions, uintptr_t thresholds,
                                  const Place& place) {
  thresholds_of_histogram(
      {pointer<const int64_t>(histogram), pointer<const int64_t>(other), classes, portions.data(),
       static_cast<int64_t>(portions.size()), pointer<float>(thresholds)},
      context_of(place));
}
void bind_class_thresholds(const Logits& logits, double portion, uintptr_t thresholds,
                           const Place& place) {
  class_thresholds({view_of(logits), portion, pointer<float>(thresholds)}, context_of(place));
}

LabelledFeatures features_of(const Labelled& side) {
  const auto& [features, type, shape, strides, labels, labels_type, classes, labels_strides, row,
               weight] = side;
  const int64_t height = std::get<2>(shape), width = std::get<3>(shape);
  const Four labels_shape{std::get<0>(shape), classes, height, width};
  return {logits_view(features, type, shape, strides, height, width, false),
          logits_view(labels, labels_type < 0 ? 0 : labels_type, labels_shape, labels_strides,
                      height, width, false),
          labels_type < 0, pointer<int32_t>(row), pointer<float>(weight)};
}
void bind_class_centroids(const Labelled& side, uintptr_t centroids, uintptr_t mass,
                          const Place& place) {
  class_centroids({features_of(side), pointer<float>(centroids), pointer<float>(mass)},
                  context_of(place));
}
void bind_centroid_gradient(uintptr_t slope, uintptr_t mass, uintptr_t scale, uintptr_t row,
                            uintptr_t weight, int64_t batch, int64_t classes, int64_t channels,
                            int64_t plane, uintptr_t gradient, int type, bool channels_last,
                            const Place& place) {
  centroid_gradient(
      {pointer<const float>(slope), pointer<const float>(mass), pointer<const float>(scale),
       pointer<const int32_t>(row), pointer<const float>(weight), batch, classes, channels, plane,
       pointer<void>(gradient), static_cast<DataType>(type), channels_last},
      context_of(place));
}
void bind_symmetric_soft_divergence(const Labelled& source, const Labelled& target, bool softmax,
                                    double eps, uintptr_t loss, uintptr_t source_slope,
                                    uintptr_t target_slope, const Place& place) {
  symmetric_soft_divergence(
      {features_of(source), features_of(target), softmax, eps, pointer<float>(loss),
       pointer<float>(source_slope), pointer<float>(target_slope)},
      context_of(place));
}

#if defined(CSCL_HAVE_CUDA_ON_CPU)
// Memory that ends at a page that nobody may touch, as something that torch.frombuffer takes.
class GuardedMemory {
 public:
  explicit GuardedMemory(size_t bytes)
      : buffer_(bytes, cuda_on_cpu::GuardedBuffer::Edge::end, 16) {}
  py::buffer_info buffer() {
    return py::buffer_info(buffer_.data<uint8_t>(), static_cast<py::ssize_t>(buffer_.size()));
  }
  bool intact() const { return buffer_.intact(); }

 private:
  cuda_on_cpu::GuardedBuffer buffer_;
};
#endif

}  // namespace

void bind_cuda(py::module_& module) {
  module.def("device_count", &device_count);
  module.def("device_problem", &device_problem);
#if defined(CSCL_HAVE_CUDA_ON_CPU)
  module.attr("on_cpu") = true;
  py::class_<GuardedMemory>(module, "GuardedMemory", py::buffer_protocol())
      .def(py::init<size_t>())
      .def_buffer(&GuardedMemory::buffer)
      .def("intact", &GuardedMemory::intact);
#else
  module.attr("on_cpu") = false;
#endif
  // The operators that have a kernel here, by their names in cscl_fast.ops.
  module.attr("operators") = py::make_tuple(
      "soft_pseudo_labels", "upsampled_cross_entropy", "pseudo_label_loss", "class_thresholds",
      "class_centroids", "symmetric_soft_divergence", "transfer_reward");
  module.def("soft_pseudo_labels", &bind_soft_pseudo_labels);
  module.def("upsampled_cross_entropy", &bind_cross_entropy);
  module.def("upsampled_cross_entropy_gradient", &bind_cross_entropy_gradient);
  module.def("pseudo_label_loss", &bind_pseudo_label_loss);
  module.def("pseudo_label_loss_gradient", &bind_pseudo_label_loss_gradient);
  module.def("transfer_reward", &bind_transfer_reward);
  module.def("class_threshold_update", &bind_class_threshold_update);
  module.def("thresholds_of_histogram", &bind_thresholds_of_histogram);
  module.def("class_thresholds", &bind_class_thresholds);
  module.def("class_centroids", &bind_class_centroids);
  module.def("centroid_gradient", &bind_centroid_gradient);
  module.def("symmetric_soft_divergence", &bind_symmetric_soft_divergence);
}
