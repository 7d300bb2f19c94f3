#pragma once

#include <stdint.h>
#include <stdlib.h>

#include <new>

namespace laq {

// Memory that a thread keeps from call to call.
class Scratch {
  public:
    ~Scratch() { free(memory_); }
    uint8_t *bytes(size_t n) {
        if (n > size_) {
            free(memory_);
            size_ = (n + n / 4 + 4095) / 4096 * 4096;
            memory_ = static_cast<uint8_t *>(aligned_alloc(4096, size_));
            if (memory_ == nullptr) {
                size_ = 0;
                throw std::bad_alloc();
            }
        }
        return memory_;
    }
    void shrink(size_t most) {
        if (size_ <= most) return;
        free(memory_);
        memory_ = nullptr;
        size_ = 0;
    }

  private:
    uint8_t *memory_ = nullptr;
    size_t size_ = 0;
};

}  // namespace laq
