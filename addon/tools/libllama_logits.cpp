// Reference answers from libllama itself: the logits of every position of given token sequences, and greedy
// continuations, on the same model file and the same prebuilt kernels that our engine uses. It is a measuring tool for
// tests and benchmarks and is never part of the product.
//
//   libllama_logits MODEL TOKENS_FILE OUT [--lora FILE] [--scale S] [--greedy N] [--last K] [--threads 2]
//                   [--text] [--flash auto|on|off] [--kv f16|f32] [--no-repack] [--backends DIR]
//
// TOKENS_FILE: one sequence per line, token ids separated by blanks. With --text: one text per line ("\n" and "\\" are
// escapes), tokenised with special tokens parsed and BOS where the model asks for it.
// --last K keeps only the logits of the last K positions of each sequence (0 = all); --greedy N continues each sequence
// by N greedy tokens (end tokens do not stop it).
//
// OUT, little-endian: "LLG1" · u32 vocabulary · u32 sequences · then per sequence
//   u32 tokens · i32[tokens] · u32 first (position of the first row of logits) · f32[(tokens − first) × vocabulary] ·
//   u32 greedy · i32[greedy].
// Exit status 0, or 1 with a sentence on stderr.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "ggml-backend.h"
#include "llama.h"

namespace {

struct Options {
    std::string           model, tokens, out, lora, backends;
    float                 scale  = 1.0f;
    int                   greedy = 0, last = 0, threads = 2;
    bool                  text = false, repack = true;
    llama_flash_attn_type flash = LLAMA_FLASH_ATTN_TYPE_AUTO;
    ggml_type             kv    = GGML_TYPE_F16;
};

[[noreturn]] void fail(const std::string & message) { throw std::runtime_error(message); }

Options parse(int argc, char ** argv) {
    Options                  o;
    std::vector<std::string> plain;
    for (int i = 1; i < argc; i++) {
        const std::string a     = argv[i];
        auto              value = [&]() -> std::string {
            if (i + 1 >= argc) fail(a + " needs a value");
            return argv[++i];
        };
        if (a == "--lora")
            o.lora = value();
        else if (a == "--scale")
            o.scale = std::stof(value());
        else if (a == "--greedy")
            o.greedy = std::stoi(value());
        else if (a == "--last")
            o.last = std::stoi(value());
        else if (a == "--threads")
            o.threads = std::stoi(value());
        else if (a == "--backends")
            o.backends = value();
        else if (a == "--text")
            o.text = true;
        else if (a == "--no-repack")
            o.repack = false;
        else if (a == "--flash") {
            const std::string v = value();
            o.flash             = v == "on"    ? LLAMA_FLASH_ATTN_TYPE_ENABLED
                                  : v == "off" ? LLAMA_FLASH_ATTN_TYPE_DISABLED
                                               : LLAMA_FLASH_ATTN_TYPE_AUTO;
        } else if (a == "--kv")
            o.kv = value() == "f32" ? GGML_TYPE_F32 : GGML_TYPE_F16;
        else if (a.rfind("--", 0) == 0)
            fail("unknown option " + a);
        else
            plain.push_back(a);
    }
    if (plain.size() != 3)
        fail("usage: libllama_logits MODEL TOKENS_FILE OUT [--lora FILE] [--greedy N] [--last K] [--threads 2]");
    o.model  = plain[0];
    o.tokens = plain[1];
    o.out    = plain[2];
    return o;
}

std::string unescape(const std::string & line) {
    std::string text;
    for (size_t i = 0; i < line.size(); i++) {
        if (line[i] == '\\' && i + 1 < line.size() && (line[i + 1] == 'n' || line[i + 1] == '\\')) {
            text += line[++i] == 'n' ? '\n' : '\\';
        } else {
            text += line[i];
        }
    }
    return text;
}

std::vector<llama_token> tokenize(const llama_vocab * vocab, const std::string & text) {
    std::vector<llama_token> tokens(text.size() + 8);
    const int n = llama_tokenize(vocab, text.data(), (int) text.size(), tokens.data(), (int) tokens.size(), true, true);
    if (n < 0) fail("a line could not be tokenised");
    tokens.resize(n);
    return tokens;
}

std::vector<std::vector<llama_token>> read_sequences(const Options & o, const llama_vocab * vocab) {
    std::ifstream in(o.tokens);
    if (!in) fail("cannot open " + o.tokens);
    std::vector<std::vector<llama_token>> all;
    for (std::string line; std::getline(in, line);) {
        if (line.empty()) continue;
        std::vector<llama_token> tokens;
        if (o.text) {
            tokens = tokenize(vocab, unescape(line));
        } else {
            std::istringstream words(line);
            for (llama_token t; words >> t;) tokens.push_back(t);
            if (!words.eof()) fail("line " + std::to_string(all.size() + 1) + " holds something that is not a token id");
        }
        const int32_t n_vocab = llama_vocab_n_tokens(vocab);
        for (llama_token t : tokens) {
            if (t < 0 || t >= n_vocab) fail("token id " + std::to_string(t) + " is outside the vocabulary");
        }
        if (tokens.empty()) fail("line " + std::to_string(all.size() + 1) + " gives no tokens");
        all.push_back(std::move(tokens));
    }
    return all;
}

class Writer {
  public:
    explicit Writer(const std::string & path) : file_(std::fopen(path.c_str(), "wb")) {
        if (!file_) fail("cannot write " + path);
    }
    ~Writer() {
        if (file_) std::fclose(file_);
    }
    void bytes(const void * data, size_t size) {
        if (std::fwrite(data, 1, size, file_) != size) fail("writing failed (disk full?)");
    }
    void u32(uint32_t v) { bytes(&v, sizeof v); }
    void close() {
        const int bad = std::fclose(file_);
        file_         = nullptr;
        if (bad) fail("writing failed (disk full?)");
    }

  private:
    std::FILE * file_;
};

void decode(llama_context * ctx, llama_batch & batch, const llama_token * tokens, int n, int position, int first_output) {
    batch.n_tokens = n;
    for (int i = 0; i < n; i++) {
        batch.token[i]     = tokens[i];
        batch.pos[i]       = position + i;
        batch.n_seq_id[i]  = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i]    = i >= first_output;
    }
    if (llama_decode(ctx, batch) != 0) fail("llama_decode failed");
}

llama_token best(const float * logits, int n_vocab) {
    int at = 0;
    for (int i = 1; i < n_vocab; i++)
        if (logits[i] > logits[at]) at = i;
    return at;
}

void run(const Options & o) {
    llama_log_set(
        [](ggml_log_level level, const char * text, void *) {
            if (level == GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
        },
        nullptr);
    if (o.backends.empty())
        ggml_backend_load_all();
    else
        ggml_backend_load_all_from_path(o.backends.c_str());
    llama_backend_init();

    llama_model_params mp = llama_model_default_params();
    mp.n_gpu_layers       = 0;
    mp.use_extra_bufts    = o.repack;
    std::unique_ptr<llama_model, decltype(&llama_model_free)> model(llama_model_load_from_file(o.model.c_str(), mp),
                                                                    llama_model_free);
    if (!model) fail("libllama does not open " + o.model);
    const llama_vocab * vocab     = llama_model_get_vocab(model.get());
    const int           n_vocab   = llama_vocab_n_tokens(vocab);
    const auto          sequences = read_sequences(o, vocab);

    size_t longest = 1;
    for (const auto & s : sequences) longest = std::max(longest, s.size());

    llama_context_params cp = llama_context_default_params();
    cp.n_ctx                = (uint32_t) (longest + o.greedy + 1);
    cp.n_batch              = (uint32_t) longest;
    cp.n_ubatch             = 512;
    cp.n_seq_max            = 1;
    cp.n_threads = cp.n_threads_batch = o.threads;
    cp.flash_attn_type                = o.flash;
    cp.type_k = cp.type_v = o.kv;
    std::unique_ptr<llama_context, decltype(&llama_free)> ctx(llama_init_from_model(model.get(), cp), llama_free);
    if (!ctx) fail("libllama makes no context");

    if (!o.lora.empty()) {
        llama_adapter_lora * adapter = llama_adapter_lora_init(model.get(), o.lora.c_str());
        if (!adapter) fail("libllama does not open the adapter " + o.lora);
        float scale = o.scale;
        if (llama_set_adapters_lora(ctx.get(), &adapter, 1, &scale) != 0) fail("libllama does not take the adapter");
    }

    Writer out(o.out);
    out.bytes("LLG1", 4);
    out.u32((uint32_t) n_vocab);
    out.u32((uint32_t) sequences.size());
    llama_batch batch = llama_batch_init((int) longest, 0, 1);
    for (const auto & tokens : sequences) {
        llama_memory_clear(llama_get_memory(ctx.get()), true);
        const int n     = (int) tokens.size();
        const int first = o.last > 0 && o.last < n ? n - o.last : 0;
        decode(ctx.get(), batch, tokens.data(), n, 0, first);
        out.u32((uint32_t) n);
        out.bytes(tokens.data(), tokens.size() * sizeof(llama_token));
        out.u32((uint32_t) first);
        for (int i = first; i < n; i++) out.bytes(llama_get_logits_ith(ctx.get(), i), sizeof(float) * n_vocab);

        std::vector<llama_token> greedy;
        if (o.greedy > 0) {
            llama_token next = best(llama_get_logits_ith(ctx.get(), n - 1), n_vocab);
            while (true) {
                greedy.push_back(next);
                if ((int) greedy.size() == o.greedy) break;
                decode(ctx.get(), batch, &next, 1, n + (int) greedy.size() - 1, 0);
                next = best(llama_get_logits_ith(ctx.get(), 0), n_vocab);
            }
        }
        out.u32((uint32_t) greedy.size());
        out.bytes(greedy.data(), greedy.size() * sizeof(llama_token));
    }
    llama_batch_free(batch);
    out.close();
}

}  // namespace

int main(int argc, char ** argv) {
    try {
        run(parse(argc, argv));
        return 0;
    } catch (const std::exception & error) {
        std::fprintf(stderr, "libllama_logits: %s\n", error.what());
        return 1;
    }
}
