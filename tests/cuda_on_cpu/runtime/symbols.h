// The name of a kernel, from its address. Part of runtime.cpp.
#pragma once

#include <cxxabi.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <link.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

#include "machine.h"

namespace cuda_on_cpu {

// A file, as long as it is looked at.
class MappedFile {
 public:
  explicit MappedFile(const char* path) {
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    struct stat status{};
    if (file < 0) return;
    if (fstat(file, &status) == 0 && status.st_size > 0) {
      bytes_ = static_cast<size_t>(status.st_size);
      void* const mapping = mmap(nullptr, bytes_, PROT_READ, MAP_PRIVATE, file, 0);
      if (mapping != MAP_FAILED) data_ = static_cast<const char*>(mapping);
    }
    close(file);
  }
  ~MappedFile() {
    if (data_ != nullptr) munmap(const_cast<char*>(data_), bytes_);
  }
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  // `count` of them at this offset, or null.
  template <typename T>
  const T* at(size_t offset, size_t count = 1) const {
    const bool inside =
        data_ != nullptr && offset <= bytes_ && count <= (bytes_ - offset) / sizeof(T);
    return inside ? reinterpret_cast<const T*>(data_ + offset) : nullptr;
  }

 private:
  const char* data_ = nullptr;
  size_t bytes_ = 0;
};

// Kernels are mostly local to their file, where dladdr does not see them: so this reads the symbol
// table of the program or library itself. Empty if that has been stripped.
inline std::string symbol_at(const void* address) {
  Dl_info info;
  if (dladdr(address, &info) == 0) return "";
  const bool readable = access(info.dli_fname, R_OK) == 0;  // a program may be known by no path
  const MappedFile file(readable ? info.dli_fname : "/proc/self/exe");
  const auto* const header = file.at<ElfW(Ehdr)>(0);
  if (header == nullptr || std::memcmp(header->e_ident, ELFMAG, SELFMAG) != 0) return "";
  const auto* const sections = file.at<ElfW(Shdr)>(header->e_shoff, header->e_shnum);
  if (sections == nullptr) return "";
  const auto base = reinterpret_cast<uintptr_t>(info.dli_fbase);
  const uintptr_t wanted =
      reinterpret_cast<uintptr_t>(address) - (header->e_type == ET_DYN ? base : 0);
  for (int i = 0; i < header->e_shnum; ++i) {
    const ElfW(Shdr) & section = sections[i];
    if (section.sh_type != SHT_SYMTAB || section.sh_link >= header->e_shnum) continue;
    const size_t count = section.sh_size / sizeof(ElfW(Sym));
    const auto* const symbols = file.at<ElfW(Sym)>(section.sh_offset, count);
    const ElfW(Shdr) & names = sections[section.sh_link];
    for (size_t s = 0; symbols != nullptr && s < count; ++s) {
      if (symbols[s].st_value != wanted || (symbols[s].st_info & 0xF) != STT_FUNC) continue;
      const char* const name = file.at<char>(names.sh_offset + symbols[s].st_name);
      return name == nullptr ? "" : name;
    }
  }
  return "";
}

// Without a symbol the kernel's name is what stood at the launch: the second argument there, which
// may hold commas of its own.
inline std::string kernel_name(const void* kernel, SourceText source) {
  const std::string symbol = symbol_at(kernel);
  if (!symbol.empty()) {
    int status = 0;
    char* const readable = abi::__cxa_demangle(symbol.c_str(), nullptr, nullptr, &status);
    const std::string name = "kernel " + (status == 0 ? std::string(readable) : symbol);
    std::free(readable);
    return name;
  }
  std::string name;
  int depth = 0, argument = 0;
  for (const char* c = source.text; *c != 0; ++c) {
    if (*c == '(' || *c == '<' || *c == '{' || *c == '[') ++depth;
    if (*c == ')' || *c == '>' || *c == '}' || *c == ']') --depth;
    if (*c == ',' && depth == 0) {
      ++argument;
    } else if (argument == 1 && !(name.empty() && *c == ' ')) {
      name += *c;
    }
  }
  return "kernel " + name;
}

}  // namespace cuda_on_cpu
