#include "dispatch.h"

#include <algorithm>
#include <stdexcept>

namespace mk {

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)

namespace {

struct Named {
  const char* name;
  Level level;
};

std::vector<Named> supported() {
  std::vector<Named> found;
  if (__builtin_cpu_supports("x86-64-v4")) found.push_back({"avx512", Level::avx512});
  if (__builtin_cpu_supports("x86-64-v3")) found.push_back({"avx2", Level::avx2});
  found.push_back({"baseline", Level::baseline});
  return found;
}

}  // namespace

Level selected_level = supported().front().level;

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Named& set : supported()) names.push_back(set.name);
  return names;
}

std::string instruction_set() {
  for (const Named& set : supported())
    if (set.level == selected_level) return set.name;
  return "";
}

void set_instruction_set(const std::string& name) {
  for (const Named& set : supported())
    if (set.name == name) {
      selected_level = set.level;
      return;
    }
  throw std::invalid_argument("instruction_set: this processor does not execute '" + name + "'");
}

#else

std::vector<std::string> instruction_sets() { return {"baseline"}; }
std::string instruction_set() { return "baseline"; }

void set_instruction_set(const std::string& name) {
  if (name != "baseline") throw std::invalid_argument("instruction_set: this build has no '" + name + "'");
}

#endif

}  // namespace mk
