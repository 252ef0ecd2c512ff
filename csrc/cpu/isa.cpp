#include "cpu/isa.h"

#include <cstdlib>
#include <stdexcept>

namespace cscl::cpu {
namespace {

struct CompiledIsa {
  Isa isa;
  std::string name;
};

const std::vector<CompiledIsa>& table() {
#define CSCL_ISA_ROW(name) {Isa::name, #name},
  static const std::vector<CompiledIsa> rows = {CSCL_FOR_EACH_ISA(CSCL_ISA_ROW)};
#undef CSCL_ISA_ROW
  return rows;
}

// __builtin_cpu_supports asks the processor and whether the operating system saves the registers.
bool processor_has(const std::string& name) {
#if defined(__x86_64__)
  if (name == "avx2") {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
  }
  if (name == "avx512") {
    return processor_has("avx2") && __builtin_cpu_supports("avx512f") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
  }
#endif
  return name == "baseline" || name == "generic" || name == "native";
}

std::string join(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

Isa choose() {
  const std::vector<std::string> supported = supported_isas();
  const char* forced = std::getenv("CSCL_FAST_ISA");
  const std::string wanted = forced != nullptr && *forced != '\0' ? forced : supported.back();
  for (const std::string& name : supported) {
    if (name != wanted) continue;
    for (const CompiledIsa& row : table()) {
      if (row.name == name) return row.isa;
    }
  }
  throw std::invalid_argument("CSCL_FAST_ISA is '" + wanted +
                              "'; this build on this processor can run: " + join(supported));
}

}  // namespace

std::vector<std::string> compiled_isas() {
  std::vector<std::string> names;
  for (const CompiledIsa& row : table()) names.push_back(row.name);
  return names;
}

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const CompiledIsa& row : table()) {
    if (processor_has(row.name)) names.push_back(row.name);
  }
  return names;
}

std::string isa_name(Isa isa) {
  for (const CompiledIsa& row : table()) {
    if (row.isa == isa) return row.name;
  }
  return "";
}

Isa active_isa() {
  static const Isa isa = choose();
  return isa;
}

}  // namespace cscl::cpu
