// One error type for the whole addon; index.ts turns it into AddonError with the same code.
#pragma once

#include <stdexcept>
#include <string>

namespace mf {

class Error : public std::runtime_error {
  public:
    Error(std::string code, const std::string & message) : std::runtime_error(message), code_(std::move(code)) {}
    const std::string & code() const { return code_; }

  private:
    std::string code_;
};

inline void require(bool condition, const char * code, const std::string & message) {
    if (!condition) {
        throw Error(code, message);
    }
}

}  // namespace mf
